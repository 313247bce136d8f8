//! From a running container to images.

use super::message::{Features, Kind, Options, Request};
use super::swrk::{Criu, null};
use super::{Asked, Error, check_version, descriptors, outside};
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::state::State;

const LOG: &str = "dump.log";

/// Dumps the container, or only its memory; unless it is to go on, its processes are gone afterwards.
///
/// # Errors
/// What CRIU says, with its log; then the container is as it was.
pub fn dump(state: &State, bundle: &Bundle, mut asked: Asked) -> Result<(), Error> {
    check_version()?;
    check_features(&asked)?;
    let folders = asked.folders(true, LOG)?;
    let cgroup = state.cgroup.clone().map(Cgroup::open);
    let mut options = Options {
        pid: Some(state.pid),
        root: Some(state.rootfs.to_string_lossy().into_owned()),
        freeze_cgroup: cgroup.as_ref().and_then(Cgroup::freezer).map(|path| path.to_string_lossy().into_owned()),
        external: outside::dumped_namespaces(bundle, state.pid)?,
        ..asked.dump_options(asked.options(bundle))
    };
    folders.name_in(&mut options);
    let kind = if asked.pre_dump { Kind::PreDump } else { Kind::Dump };
    let mut request = Request { kind: kind.into(), options: Some(options), ..Request::default() };
    if let (Kind::Dump, Some(options)) = (kind, &mut request.options) {
        options.ext_mnt = outside::dumped_mounts(bundle, cgroup.as_ref(), state.pid)?;
        options.external.extend(descriptors::external(&state.descriptors));
        descriptors::write(&asked.images, &state.descriptors)?;
    }
    let mut status = asked.status.take();
    let criu = Criu::start(Some(null()?))?;
    let said = criu.ask(&request, &mut |script, _, _| {
        if script == "status-ready"
            && let Some(mut status) = status.take()
        {
            // Whoever has stopped listening will find the pages served all the same.
            let _ = std::io::Write::write_all(&mut status, &[0]);
        }
        Ok(())
    });
    said.map(drop).map_err(|error| error.with_log(folders.log()))
}

/// Refuses what this CRIU or this kernel lacks.
fn check_features(asked: &Asked) -> Result<(), Error> {
    if !asked.pre_dump && !asked.lazy_pages {
        return Ok(());
    }
    let features = Features { mem_track: asked.pre_dump.then_some(true), lazy_pages: asked.lazy_pages.then_some(true) };
    let request = Request { kind: Kind::FeatureCheck.into(), features: Some(features), ..Request::default() };
    let criu = Criu::start(Some(null()?))?;
    let there = criu.ask(&request, &mut |_, _, _| Ok(()))?.features.unwrap_or_default();
    match (asked.pre_dump && there.mem_track != Some(true), asked.lazy_pages && there.lazy_pages != Some(true)) {
        (true, _) => Err(Error::Features("MemTrack: --pre-dump needs a kernel that tracks changed memory")),
        (_, true) => Err(Error::Features("LazyPages: --lazy-pages needs userfaultfd")),
        _ => Ok(()),
    }
}
