//! From images to a running container.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::process::Pid;

use super::message::{Kind, Notify, Options, Request};
use super::swrk::{Criu, null};
use super::{Asked, Error, check_version, descriptors, outside, own_mounts};
use crate::bundle::Bundle;
use crate::child::{Init, helper};
use crate::cli;
use crate::container::{Container, Ground};
use crate::error::Doing as _;
use crate::handover::send_fd;
use crate::hooks::{self, When};
use crate::plan::Receiver;
use crate::state::start_time;

const LOG: &str = "restore.log";

/// Restores a container onto `ground`; its processes run when this returns.
///
/// # Errors
/// What CRIU says, with its log; then nothing is left of it.
pub fn restore(
    mut ground: Ground,
    bundle: &Bundle,
    asked: &Asked,
    terminal: Option<Receiver>,
) -> Result<Container, cli::Error> {
    let init = start(&mut ground, bundle, asked, terminal.as_ref())?;
    ground.rewrite_state()?; // with the time namespace that it may have been given
    ground.settle()?;
    Ok(ground.stand(init, bundle))
}

fn start(ground: &mut Ground, bundle: &Bundle, asked: &Asked, terminal: Option<&Receiver>) -> Result<Init, Error> {
    check_version()?;
    let root = bundle.rootfs.to_string_lossy().into_owned();
    let mut options = Options {
        root: Some(root),
        evasive_devices: Some(true),
        rst_sibling: Some(true), // its first process will be our child and not CRIU's
        lsm_profile: asked.lsm_profile.clone(),
        lsm_mount_context: asked.lsm_mount_context.clone(),
        inherit_fd: descriptors::inherited(&descriptors::read(&asked.images)?),
        ext_mnt: outside::restored_mounts(bundle, ground.cgroup())?,
        ..asked.options(bundle)
    };
    let namespaces = outside::joined_namespaces(bundle, &mut options)?;
    let path = CString::new(bundle.rootfs.as_os_str().as_bytes()).expect("a canonical path has no zero byte");
    helper::make_points(&path, &outside::points(bundle)?)?;
    let stdio = if bundle.process().terminal { Some(null()?) } else { None };
    let (folders, criu) = own_mounts::with_root(&bundle.rootfs, || {
        let folders = asked.folders(false, LOG)?;
        Ok((folders, Criu::start(stdio)?))
    })?;
    folders.name_in(&mut options);
    drop(namespaces); // it has them now
    if let Some(cgroup) = ground.cgroup() {
        cgroup.add(criu.pid())?; // so that what it makes is born inside
        options.cg_root = outside::cgroup_roots(criu.pid())?;
    }
    let request = Request { kind: Kind::Restore.into(), options: Some(options), ..Request::default() };
    let mut init = None;
    criu.ask(&request, &mut |script, notify, fd| {
        if let Some(restored) = on(ground, script, notify, fd, terminal)? {
            init = Some(restored);
        }
        Ok(())
    })
    .map_err(|error| error.with_log(folders.log()))?;
    init.ok_or_else(|| Error::Nonsense("it has restored a container and named no process".into()))
}

/// Does what there is to do at a point of the restore.
fn on(
    ground: &mut Ground,
    script: &str,
    notify: &Notify,
    fd: Option<OwnedFd>,
    terminal: Option<&Receiver>,
) -> Result<Option<Init>, Error> {
    let state = &mut ground.state;
    match script {
        "setup-namespaces" => {
            state.pid = notify.pid();
            hooks::run(When::Prestart, state)?;
            hooks::run(When::CreateRuntime, state)?;
        }
        "orphan-pts-master" => {
            let no_terminal = || Error::unfit("process.terminal", "the images have a terminal, and there is none here");
            let (master, receiver) = fd.zip(terminal).ok_or_else(no_terminal)?;
            send_fd(receiver.socket.as_fd(), master.as_fd(), b"/dev/ptmx")
                .doing(|| "handing over the terminal".into())?;
        }
        "post-restore" => {
            let pid =
                Pid::from_raw(notify.pid()).ok_or_else(|| Error::Nonsense("a process without a number".into()))?;
            let init = Init::of_running(pid)?;
            state.pid = notify.pid();
            state.start_time = start_time(state.pid).map_or(0, |(time, _)| time);
            if has_own_time(state.pid) {
                state.namespaces |= libc::CLONE_NEWTIME as u64; // its clocks go on from where they were
            }
            ground.note_init()?;
            return Ok(Some(init));
        }
        _ => {} // nothing for us
    }
    Ok(None)
}

fn has_own_time(pid: i32) -> bool {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/time")).ok();
    of(&pid.to_string()).is_some_and(|theirs| Some(theirs) != of("self"))
}
