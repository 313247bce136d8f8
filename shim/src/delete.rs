//! `delete`: cleans up after a serving process that is gone. Quiet, and right however little is left.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::SystemTime;

use prost::Message as _;
use tare_proto::containerd::task::v3::DeleteResponse;

use crate::address::Address;
use crate::args::Args;
use crate::bundle::Config;
use crate::error::Doing as _;
use crate::options::Options;
use crate::runtime::Runtime;
use crate::{Error, log, rootfs, sandbox};

/// What a container that was killed with its supervisor ends with.
const KILLED: u32 = 137;

/// # Errors
/// Something is left.
pub fn delete(args: &Args) -> Result<(), Error> {
    let bundle = match &args.bundle {
        given if given.as_os_str().is_empty() => std::env::current_dir().doing(|| "finding the bundle".into())?,
        given => given.clone(),
    };
    let pid = fs::read_to_string(bundle.join("init.pid")).ok().and_then(|text| text.trim().parse().ok());
    for (id, bundle) in sandbox::members(&bundle) {
        delete_one(args, &id, &bundle)?;
    }
    delete_one(args, &args.id, &bundle)?;
    remove_socket(args, &bundle)?;
    let answer =
        DeleteResponse { pid: pid.unwrap_or(0), exit_status: KILLED, exited_at: Some(SystemTime::now().into()) };
    Ok(std::io::stdout().write_all(&answer.encode_to_vec()).doing(|| "answering".into())?)
}

/// One container, or sandbox: what the runtime has of it, and its root's mounts.
fn delete_one(args: &Args, id: &str, bundle: &Path) -> Result<(), Error> {
    // Written before the runtime is called: without the whole of it there is nothing to delete.
    let options = Options::read(bundle).unwrap_or_else(|error| {
        log::plain(&error.to_string());
        None
    });
    if let Some(options) = options {
        let runtime = Runtime::new(&options, &args.namespace, bundle, args.debug);
        runtime.run_alone(&["delete", "--force", id])?;
    }
    rootfs::detach_layers(bundle)?;
    Ok(rootfs::unmount_all(&bundle.join("rootfs"))?)
}

/// The group's socket, unless the group lives on for other containers.
fn remove_socket(args: &Args, bundle: &Path) -> Result<(), Error> {
    let config = Config::read(bundle).unwrap_or_default(); // cut short by a crash, it names no group
    let written = fs::read_to_string(bundle.join("address")).ok();
    let folder = written.as_deref().and_then(|url| Path::new(url.strip_prefix("unix://")?).parent());
    let address = Address::of(folder, &args.address, &args.namespace, config.group(&args.id))?;
    Ok(address.remove_if_dead()?)
}
