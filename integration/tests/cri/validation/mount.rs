//! Folders of the host in a container: by a link, with what is mounted below them later, for reading only.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use tare_proto::runtime::v1 as pb;

use crate::node::{Client, Node};

/// A folder of the host's that is a mount of its own, with one below it to mount at.
struct Folder(tempfile::TempDir);

impl Folder {
    fn of(kind: pb::MountPropagation) -> Folder {
        let dir = tempfile::Builder::new().prefix("tare-cri-mount.").tempdir().unwrap();
        rustix::mount::mount_bind_recursive(dir.path(), dir.path()).unwrap();
        let passing = match kind {
            pb::MountPropagation::PropagationPrivate => MountPropagationFlags::PRIVATE,
            _ => MountPropagationFlags::SHARED,
        };
        rustix::mount::mount_change(dir.path(), passing | MountPropagationFlags::REC).unwrap();
        for name in ["here", "there"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Folder(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH); // with all that is below
    }
}

async fn privileged(node: &mut Node) -> String {
    let mut config = node.pod("web");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    node.run(config).await
}

/// A privileged container with these mounts.
fn with(node: &Client, name: &str, mounts: Vec<pb::Mount>) -> pb::ContainerConfig {
    let mut config = node.container(name, "sleep 1000");
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    config.mounts = mounts;
    config
}

#[tokio::test]
async fn what_is_mounted_later_passes_in_the_directions_that_were_asked_for() {
    let mut node = Node::start().await;
    let pod = privileged(&mut node).await;
    use pb::MountPropagation as Kind;
    for (kind, into, out) in [
        (Kind::PropagationPrivate, false, false),
        (Kind::PropagationHostToContainer, true, false),
        (Kind::PropagationBidirectional, true, true),
    ] {
        let folder = Folder::of(kind);
        let at = folder.path().display().to_string();
        let mount = pb::Mount {
            host_path: at.clone(),
            container_path: at.clone(),
            propagation: kind.into(),
            ..Default::default()
        };
        let config = with(&node, "main", vec![mount.clone()]);
        let id = node.running(&pod, config).await;
        assert_eq!(node.status(&id).await.mounts, [mount]);
        let below = folder.path().join("here");
        rustix::mount::mount("tare-test", &below, "tmpfs", MountFlags::empty(), None).unwrap();
        std::fs::write(below.join("flag"), "").unwrap();
        assert_eq!(node.prints(&id, &format!("ls -A {at}/here")).await == "flag\n", into, "{kind:?}");
        node.prints(&id, &format!("mount -t tmpfs x {at}/there && touch {at}/there/flag")).await;
        assert_eq!(folder.path().join("there/flag").exists(), out, "{kind:?}");
        node.remove_container(&id).await;
    }
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn a_folder_that_is_for_reading_only_may_be_so_to_its_depth() {
    let mut node = Node::start().await;
    let pod = privileged(&mut node).await;
    let folder = Folder::of(pb::MountPropagation::PropagationPrivate);
    rustix::mount::mount("tare-test", folder.path().join("here"), "tmpfs", MountFlags::empty(), None).unwrap();
    let mount = |change: &dyn Fn(&mut pb::Mount)| {
        let mut mount = pb::Mount {
            host_path: folder.path().display().to_string(),
            container_path: "/mnt".into(),
            readonly: true,
            ..Default::default()
        };
        change(&mut mount);
        mount
    };
    for deep in [false, true] {
        let config = with(&node, "main", vec![mount(&|mount| mount.recursive_read_only = deep)]);
        let id = node.running(&pod, config).await;
        let code = async |node: &mut Client, path: &str| node.exec(&id, &format!("touch {path}"), 10).await.unwrap();
        assert_eq!(code(&mut node, "/mnt/x").await.exit_code, 1);
        assert_eq!(code(&mut node, "/mnt/here/x").await.exit_code, i32::from(deep), "{deep}");
        node.remove_container(&id).await;
    }
    let bad = |propagation: pb::MountPropagation, readonly| {
        let mut mount = mount(&|mount| (mount.recursive_read_only, mount.readonly) = (true, readonly));
        mount.set_propagation(propagation);
        mount
    };
    for bad in [
        bad(pb::MountPropagation::PropagationHostToContainer, true),
        bad(pb::MountPropagation::PropagationBidirectional, true),
        bad(pb::MountPropagation::PropagationPrivate, false),
    ] {
        let config = with(&node, "bad", vec![bad]);
        assert!(node.create(&pod, config).await.unwrap_err().message().contains("recursive_read_only"));
    }
    let handlers = node.client.status(pb::StatusRequest::default()).await.unwrap().into_inner().runtime_handlers;
    let nameless = handlers.iter().find(|handler| handler.name.is_empty()).unwrap().features.unwrap();
    assert!(nameless.recursive_read_only_mounts);
    node.remove(&pod).await;
    node.end();
}

#[tokio::test]
async fn a_folder_may_be_named_by_a_link_to_it() {
    let mut node = Node::start().await;
    let config = node.pod("web");
    let pod = node.run(config).await;
    let place = tempfile::tempdir().unwrap();
    let (folder, link): (PathBuf, PathBuf) = (place.path().join("folder"), place.path().join("link"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("flag"), "").unwrap();
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    let at = link.display().to_string();
    let mut config = node.container("main", "sleep 1000");
    config.mounts = vec![pb::Mount {
        host_path: at.clone(),
        container_path: at.clone(),
        selinux_relabel: true,
        ..Default::default()
    }];
    let id = node.running(&pod, config).await;
    assert_eq!(node.prints(&id, &format!("ls -A {at}")).await, "flag\n");
    node.remove(&pod).await;
    node.end();
}
