//! config.json is refused with a sentence, or becomes all that is decided before a container is made. Nothing is made.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::LazyLock;

use tare_runtime::bundle::{Bundle, check, read};
use tare_runtime::cgroup::{CgroupPath, Settings};
use tare_runtime::{plan, seccomp};

/// A root file system with nothing in it.
static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf, OwnedFd)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder for the bundle");
    let rootfs = folder.path().join("rootfs");
    std::fs::create_dir(&rootfs).expect("a folder for the root");
    let root = std::fs::File::open(&rootfs).expect("the folder that was just made").into();
    (folder, rootfs, root)
});

pub fn try_input(input: &[u8]) {
    if let Err(error) = decide(input) {
        super::assert_sentence(&error);
    }
}

/// The steps of `tare create` before its first side effect.
fn decide(input: &[u8]) -> Result<(), String> {
    fn text(error: impl ToString) -> String {
        error.to_string()
    }
    let (folder, rootfs, root) = &*BUNDLE;
    let spec = read(input)?;
    check(&spec).map_err(text)?;
    let bundle = Bundle { dir: folder.path().to_owned(), spec, rootfs: rootfs.clone() };
    let linux = bundle.linux();
    let filter = linux.seccomp.as_ref().map(seccomp::compile).transpose().map_err(text)?;
    if let Some(program) = &filter {
        super::seccomp::assert_loadable(program);
    }
    let path = CgroupPath::resolve(Some(&linux.cgroups_path), "fuzz").map_err(text)?;
    for directory in path.directories() {
        assert!(directory.starts_with("/sys/fs/cgroup") && !directory.iter().any(|part| part == ".."), "{directory:?}");
    }
    let resources = linux.resources.clone().unwrap_or_default();
    Settings::for_create(&path, &resources).map_err(text)?;
    plan::namespaces(&bundle).map_err(text)?;
    let cgroups = plan::CgroupView { unified: true, namespace: true, hierarchies: Vec::new(), folder: None };
    plan::filesystem(&bundle, &cgroups, false).map_err(text)?;
    let preserved = plan::Preserved { listen: 0, more: 0 };
    plan::process(bundle.process(), filter, std::os::fd::AsFd::as_fd(root), preserved, &mut |warning| {
        super::assert_sentence(&warning);
    })
    .map_err(text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the fuzzer would only ever see the first refusals.
    #[test]
    fn the_corpus_has_an_input_that_is_planned_to_the_end() {
        let default = include_bytes!("../../corpus/config/default.json");
        assert_eq!(decide(default), Ok(()));
    }
}
