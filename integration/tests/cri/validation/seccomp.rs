//! System call filters by every kind of profile.

use tare_proto::runtime::v1 as pb;
use tare_proto::runtime::v1::security_profile::ProfileType;

use crate::network;
use crate::node::Client;

const MODE: &str = "sed -n 's/^Seccomp:[^0-9]*//p' /proc/self/status";

fn refusing(place: &std::path::Path, calls: &[&str]) -> pb::SecurityProfile {
    let path = place.join(format!("{}.json", calls[0]));
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": calls, "action": "SCMP_ACT_ERRNO"}],
    });
    std::fs::write(&path, profile.to_string()).unwrap();
    pb::SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: path.display().to_string() }
}

fn of(kind: ProfileType) -> Option<pb::SecurityProfile> {
    Some(pb::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() })
}

/// What a command says in a container that has the right to name its host, but for a profile.
async fn says(
    node: &mut Client,
    pod: &str,
    command: &str,
    privileged: bool,
    seccomp: Option<pb::SecurityProfile>,
) -> (i32, String) {
    let mut config = node.container("main", "sleep 1000");
    config.linux.get_or_insert_default().security_context = Some(pb::LinuxContainerSecurityContext {
        privileged,
        seccomp,
        capabilities: Some(pb::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() }),
        ..Default::default()
    });
    let id = node.running(pod, config).await;
    let said = node.exec(&id, command, 10).await.unwrap();
    node.remove_container(&id).await;
    let text = [said.stdout, said.stderr].concat();
    (said.exit_code, String::from_utf8(text).unwrap().trim().to_owned())
}

#[tokio::test]
async fn a_profile_holds_for_all_but_the_privileged() {
    let (mut node, _netns) = network::node().await;
    let place = tempfile::tempdir().unwrap();
    let (naming, modes) = (refusing(place.path(), &["sethostname"]), refusing(place.path(), &["chmod", "fchmodat"]));
    let mut config = network::own_network(&node, "web");
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.privileged = true;
    security.seccomp = Some(naming.clone()); // it is the sandbox's own, not its containers'
    let pod = node.run(config).await;
    const NAME: &str = "hostname another";
    for (privileged, profile, command, code, text) in [
        (false, None, MODE, 0, "0"),
        (false, of(ProfileType::Unconfined), MODE, 0, "0"),
        (false, of(ProfileType::RuntimeDefault), MODE, 0, "2"),
        (false, Some(modes), "chmod 400 /", 1, "chmod: /: Operation not permitted"),
        (false, of(ProfileType::Unconfined), NAME, 0, ""),
        (false, Some(naming.clone()), NAME, 1, "hostname: sethostname: Operation not permitted"),
        (true, Some(naming), NAME, 0, ""),
    ] {
        let said = says(&mut node, &pod, command, privileged, profile.clone()).await;
        assert_eq!((said.0, said.1.as_str()), (code, text), "{command}: {profile:?}");
    }
    node.remove(&pod).await;
    node.end();
}
