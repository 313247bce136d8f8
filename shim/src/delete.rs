//! `delete`: cleans up after a serving process that is gone. Quiet, and right however little is left.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::SystemTime;

use prost::Message as _;
use tare_proto::containerd::task::v3::DeleteResponse;

use crate::flags::Flags;
use crate::runtime::Runtime;
use crate::{Doing as _, Error, address, mounts};

/// What a container that was killed with its supervisor ends with.
const KILLED: u32 = 137;

pub fn delete(flags: &Flags) -> Result<(), Error> {
    let bundle = if flags.bundle.is_empty() {
        std::env::current_dir().doing(|| "finding the bundle".into())?
    } else {
        flags.bundle.clone().into()
    };
    let pid = fs::read_to_string(bundle.join("init.pid")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let runtime = Runtime::of_bundle(&bundle, &flags.namespace);
    let ended = runtime
        .command(&bundle, &["delete", "--force", &flags.id])
        .output()
        .doing(|| format!("running {}", runtime.binary()))?;
    if !ended.status.success() {
        eprintln!("deleting {}: {}", flags.id, runtime.last_error(&bundle).unwrap_or_else(|| ended.status.to_string()));
    }
    mounts::unmount_all(&bundle.join("rootfs"))?;
    remove_socket(flags, &bundle);
    let answer = DeleteResponse { pid, exit_status: KILLED, exited_at: Some(SystemTime::now().into()) };
    std::io::stdout().write_all(&answer.encode_to_vec()).doing(|| "answering".into())
}

/// The socket of a group that nobody serves any more.
fn remove_socket(flags: &Flags, bundle: &Path) {
    let Ok(written) = fs::read_to_string(bundle.join("address")) else { return };
    let Some(path) = written.strip_prefix("unix://") else { return };
    let ours =
        address::socket(Path::new(path).parent().and_then(Path::to_str), &flags.address, &flags.namespace, &flags.id);
    let alone = ours.is_ok_and(|ours| ours == Path::new(path)); // else it is a pod's, whose other containers may live
    if alone && std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = fs::remove_file(path);
    }
}
