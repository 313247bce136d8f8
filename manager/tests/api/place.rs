//! Folders that a daemon cannot have: each is named, and whoever has it goes on.

use std::path::Path;
use std::process::Command;

use crate::tared::{Tared, tared};

/// What a daemon says that does not come up.
fn refusal(mut command: Command) -> String {
    let ended = command.output().unwrap();
    assert!(!ended.status.success());
    String::from_utf8(ended.stderr).unwrap()
}

#[tokio::test]
async fn a_second_daemon_on_the_same_folders_is_refused_and_the_first_goes_on() {
    let first = Tared::start().await;
    let said = refusal(tared(first.dir.path()));
    assert!(said.contains("tared.db"), "{said}");
    first.channel().await;
}

/// It would take the other's tasks for its own.
#[tokio::test]
async fn a_second_daemon_on_the_same_state_is_refused_whatever_its_root() {
    let first = Tared::start().await;
    let own = tempfile::tempdir().unwrap();
    let mut second = Command::new(env!("CARGO_BIN_EXE_tared"));
    second.arg("--root").arg(own.path().join("root")).arg("--state").arg(first.dir.path().join("state"));
    second.arg("--address").arg(own.path().join("d.sock"));
    let said = refusal(second);
    assert!(said.contains("/state: another daemon has it"), "{said}");
    first.channel().await;
}

#[test]
fn a_root_that_is_read_only_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    rustix::mount::mount("tmpfs", &root, "tmpfs", rustix::mount::MountFlags::RDONLY, None::<&std::ffi::CStr>).unwrap();
    let _mounted = Mounted(&root);
    let said = refusal(tared(dir.path()));
    assert!(said.contains(&*root.to_string_lossy()) && said.contains("read-only file system"), "{said}");
}

struct Mounted<'p>(&'p Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
