//! What a container may do, as its security context says it.

use tare_proto::runtime::v1 as pb;
use tare_proto::runtime::v1::security_profile::ProfileType;

use crate::node::{Client, Node};

/// Runs a command in a container of its own, with a security context.
async fn says(
    node: &mut Client,
    pod: &str,
    command: &str,
    change: impl FnOnce(&mut pb::LinuxContainerSecurityContext),
) -> String {
    let mut config = node.container("c", "while :; do sleep 0.05; done");
    change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
    let id = node.running(pod, config).await;
    let said = node.exec(&id, command, 10).await.unwrap();
    node.remove_container(&id).await;
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr)).trim().to_owned()
}

#[tokio::test]
async fn a_container_is_confined_as_its_context_says() {
    let mut node = Node::start().await;
    let mut config = node.pod("web");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = node.run(config).await;
    let value = |value| Some(pb::Int64Value { value });
    let id = says(&mut node, &pod, "id -u; id -g; id -G", |c| {
        (c.run_as_user, c.run_as_group, c.supplemental_groups) = (value(1001), value(1002), vec![1234]);
    });
    assert_eq!(id.await, "1001\n1002\n1002 1234");
    assert_eq!(says(&mut node, &pod, "id -nu", |c| c.run_as_username = "nobody".into()).await, "nobody");
    let frozen = says(&mut node, &pod, "touch /x", |c| c.readonly_rootfs = true).await;
    assert!(frozen.contains("Read-only file system"), "{frozen}");
    let masked = says(&mut node, &pod, "cat /etc/passwd", |c| c.masked_paths = vec!["/etc/passwd".into()]).await;
    assert_eq!(masked, "");
    let kept = says(&mut node, &pod, "touch /tmp/x", |c| c.readonly_paths = vec!["/tmp".into()]).await;
    assert!(kept.contains("Read-only file system"), "{kept}");
    const STATUS: &str = "sed -n 's/^\\(Seccomp\\|NoNewPrivs\\):[^0-9]*//p' /proc/self/status";
    assert_eq!(says(&mut node, &pod, STATUS, |_| ()).await, "0\n0");
    let strict = says(&mut node, &pod, STATUS, |c| {
        c.no_new_privs = true;
        c.seccomp =
            Some(pb::SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() });
    });
    assert_eq!(strict.await, "1\n2");
    let bounding = "sed -n 's/^CapBnd:[^0-9a-f]*//p' /proc/self/status";
    assert_eq!(says(&mut node, &pod, bounding, |_| ()).await, "00000000a80425fb");
    let one = says(&mut node, &pod, bounding, |c| {
        c.capabilities = Some(pb::Capability {
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        });
    });
    assert_eq!(one.await, "0000000000001000");
    let all =
        says(&mut node, &pod, "mount -t tmpfs x /tmp && ls -d /dev/full && echo mounted", |c| c.privileged = true);
    assert_eq!(all.await, "/dev/full\nmounted");
    assert_eq!(says(&mut node, &pod, "cat /proc/1/cmdline", |_| ()).await, "/pause\0");
    let own = says(&mut node, &pod, "cat /proc/1/cmdline", |c| {
        c.namespace_options.get_or_insert_default().set_pid(pb::NamespaceMode::Container);
    });
    assert!(own.await.starts_with("/bin/sh\0"));
    node.remove(&pod).await;
    node.end();
}
