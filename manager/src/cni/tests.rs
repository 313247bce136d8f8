//! The protocol as a plugin sees it: a shell script that writes down how it was called.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::error::Error;

/// Prints the file `<type>.<verb>` beside it as its result, and exits with 1 if that is a complaint.
const PLUGIN: &str = r#"#!/bin/sh
here=$(dirname "$0"); type=$(basename "$0")
{ echo "$type $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS"; cat; echo; } >> "$here/calls"
answer="$here/$type.$CNI_COMMAND"
[ ! -e "$answer" ] || { cat "$answer"; ! grep -q '"code"' "$answer"; }
"#;

struct Node {
    dir: tempfile::TempDir,
    network: Network,
}

/// What a plugin was called with: the words of its environment, and its input.
type Call = (Vec<String>, Value);

impl Node {
    fn new(list: Value) -> Node {
        let dir = tempfile::tempdir().unwrap();
        for program in ["first", "second"] {
            let path = dir.path().join(program);
            fs::write(&path, PLUGIN).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir(dir.path().join("net.d")).unwrap();
        let settings = Settings {
            conf_dir: dir.path().join("net.d"),
            bin_dirs: vec![dir.path().to_owned()],
            built_in: false,
            ..Settings::default()
        };
        let node = Node { network: Network::new(settings, &dir.path().join("cache")), dir };
        node.configure(list);
        node.answers("first.ADD", json!({"ips": [{"address": "10.0.0.2/24"}]}));
        node.answers("second.ADD", json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.3/24"}]}));
        node
    }

    fn configure(&self, list: Value) {
        fs::write(self.dir.path().join("net.d/10.conflist"), list.to_string()).unwrap();
    }

    fn answers(&self, call: &str, answer: Value) {
        fs::write(self.dir.path().join(call), answer.to_string()).unwrap();
    }

    /// The calls since the last time.
    fn calls(&self) -> Vec<Call> {
        let file = self.dir.path().join("calls");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let _ = fs::remove_file(file);
        let lines: Vec<&str> = text.lines().collect();
        let call =
            |pair: &[&str]| (pair[0].split(' ').map(str::to_owned).collect(), serde_json::from_str(pair[1]).unwrap());
        lines.chunks(2).map(call).collect()
    }

    fn verbs(&self) -> Vec<String> {
        self.calls().into_iter().map(|(words, _)| words[..2].join(" ")).collect()
    }

    fn cached(&self) -> usize {
        fs::read_dir(self.dir.path().join("cache")).map_or(0, Iterator::count)
    }
}

fn two(version: &str) -> Value {
    json!({"cniVersion": version, "name": "pods", "plugins": [
        {"type": "first", "own": 1},
        {"type": "second", "capabilities": {"portMappings": true, "bandwidth": false}},
    ]})
}

fn pod() -> Attachment {
    let mut pod = Attachment::new("pod1", Some(PathBuf::from("/run/netns/x"))).unwrap().arg("K", "v").unwrap();
    let mapping = PortMapping { host_port: 80, container_port: 8080, protocol: Protocol::Udp, host_ip: None };
    pod.capabilities.port_mappings = vec![mapping];
    pod.capabilities.bandwidth = Some(Bandwidth { egress_rate: 5, ..Bandwidth::default() });
    pod
}

#[tokio::test]
async fn plugins_are_chained_on_the_way_in_and_called_backwards_on_the_way_out() {
    let node = Node::new(two("1.0.0"));
    let added = node.network.add(&pod()).await.unwrap();
    assert_eq!(added.ips(), ["10.0.0.3".parse::<std::net::IpAddr>().unwrap()]);
    let calls = node.calls();
    assert_eq!(calls[0].0.join(" "), "first ADD pod1 /run/netns/x eth0 K=v");
    assert_eq!(calls[0].1, json!({"cniVersion": "1.0.0", "name": "pods", "type": "first", "own": 1}));
    assert_eq!(calls[1].1["prevResult"], json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}));
    let mappings = json!({"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "udp"}]});
    assert_eq!(calls[1].1["runtimeConfig"], mappings);

    node.network.check(&pod()).await.unwrap();
    assert_eq!(node.verbs(), ["first CHECK", "second CHECK"]);

    // Another daemon, another configuration, no namespace: it is taken away as it was added.
    node.configure(json!({"cniVersion": "1.0.0", "name": "other", "type": "first"}));
    let gone = Attachment::new("pod1", None).unwrap();
    node.network.remove(&gone).await.unwrap();
    let calls = node.calls();
    assert_eq!(calls[0].0.join(" "), "second DEL pod1  eth0 K=v");
    assert_eq!(calls[0].1["prevResult"]["ips"][0]["address"], "10.0.0.3/24");
    assert_eq!(calls[0].1["runtimeConfig"], mappings);
    assert_eq!(calls[1].0[..2].join(" "), "first DEL");
    assert_eq!(node.cached(), 0);
    node.network.remove(&gone).await.unwrap();
    assert!(node.calls().is_empty());
    assert!(matches!(node.network.check(&gone).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_plugin_that_fails_is_named_and_nothing_is_left() {
    let node = Node::new(two("1.0.0"));
    node.answers("second.ADD", json!({"cniVersion": "1.0.0", "code": 7, "msg": "bad", "details": "very"}));
    let error = node.network.add(&pod()).await.unwrap_err();
    assert_eq!(error.to_string(), "network pods: plugin second: ADD: bad; very (code 7)");
    assert_eq!(node.verbs(), ["first ADD", "second ADD", "second DEL", "first DEL"]);
    assert_eq!(node.cached(), 0);

    node.answers("second.ADD", json!({"code": 11, "msg": "later"}));
    assert!(matches!(node.network.add(&pod()).await, Err(Error::Unavailable(_))));
    fs::remove_file(node.dir.path().join("second")).unwrap();
    node.calls();
    for error in [node.network.status().await.unwrap_err(), node.network.add(&pod()).await.unwrap_err()] {
        assert!(error.to_string().contains("network pods: plugin second is in none of"), "{error}");
    }
    assert_eq!((node.verbs().len(), node.cached()), (0, 0));
}

#[tokio::test]
async fn what_could_not_be_taken_away_is_tried_again() {
    let node = Node::new(two("1.0.0"));
    node.network.add(&pod()).await.unwrap();
    node.answers("first.DEL", json!({"code": 5, "msg": "stuck"}));
    assert!(node.network.remove(&pod()).await.is_err());
    fs::remove_file(node.dir.path().join("first.DEL")).unwrap();
    node.calls();
    node.network.remove(&pod()).await.unwrap();
    assert_eq!(node.verbs(), ["second DEL", "first DEL"]);
    assert_eq!(node.cached(), 0);
}

#[tokio::test]
async fn what_a_writer_that_was_killed_has_left_goes_with_the_pod() {
    let node = Node::new(two("1.0.0"));
    let folder = node.dir.path().join("cache/pod1");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("eth0.new"), "{").unwrap();
    node.network.remove(&pod()).await.unwrap();
    assert_eq!((node.verbs().len(), node.cached()), (0, 0));
}

#[tokio::test]
async fn versions_decide_which_verbs_there_are() {
    let node = Node::new(two("0.3.1"));
    node.network.add(&pod()).await.unwrap();
    node.calls();
    node.network.check(&pod()).await.unwrap();
    node.network.status().await.unwrap();
    node.network.remove(&pod()).await.unwrap();
    let calls = node.calls();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert_eq!(calls[0].1.get("prevResult"), None);

    node.configure(two("1.1.0"));
    node.network.status().await.unwrap();
    assert_eq!(node.verbs(), ["first STATUS", "second STATUS"]);
    node.answers("first.STATUS", json!({"code": 50, "msg": "not yet"}));
    let error = node.network.status().await.unwrap_err().to_string();
    assert_eq!(error, "network pods: plugin first: STATUS: not yet (code 50)");
}

#[tokio::test]
async fn pods_that_nobody_knows_any_more_are_collected() {
    let node = Node::new(two("1.1.0"));
    node.network.add(&pod()).await.unwrap();
    node.network.add(&Attachment::new("pod2", None).unwrap()).await.unwrap();
    node.calls();
    node.network.collect(|| Ok(vec!["pod2".into()])).await.unwrap();
    let calls = node.calls();
    let verbs: Vec<String> = calls.iter().map(|(words, _)| words[..2].join(" ")).collect();
    assert_eq!(verbs, ["second DEL", "first DEL", "first GC", "second GC"]);
    assert_eq!(calls[2].1["cni.dev/valid-attachments"], json!([{"containerID": "pod2", "ifname": "eth0"}]));
    assert_eq!(node.cached(), 1);
}
