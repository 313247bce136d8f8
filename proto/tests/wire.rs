//! Our messages and services against upstream's own `.proto` text, from Debian's packages: whatever both define is the
//! same on the wire, name for name and number for number.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use prost::Message as _;
use tare_integration::programs;

/// What upstream defines in releases later than the packaged ones: how shims are started since containerd 2.3, and a
/// snapshot's parent in `Commit` and mounts that the daemon makes since 2.2.
const LATER: &[&str] = &[
    "containerd.runtime.bootstrap.v1.",
    "containerd.services.mounts.v1.",
    "containerd.services.snapshots.v1.CommitSnapshotRequest.5",
    "containerd.types.ActivationInfo",
    "containerd.types.ActiveMount",
];

/// ttrpc's own text writes google.rpc.Status down again, in no package.
const OTHER_NAME: (&str, &str) = (" .Status ", " .google.rpc.Status ");

/// Packages whose text no Debian package has: ours, and one.
const UNPACKAGED: &[&str] = &["tare.", "grpc.health.v1"];

/// Each message's fields, each enum's values, each service's methods: full name, then number or name, then the rest.
type Definitions = BTreeMap<String, BTreeMap<String, String>>;

fn definitions(roots: &[PathBuf], files: &[PathBuf]) -> Definitions {
    let set = protox::compile(files, roots).unwrap_or_else(|error| panic!("{error:?}"));
    // The types of prost-types and of protox may be of two versions; the bytes are the same.
    let set = prost_types::FileDescriptorSet::decode(set.encode_to_vec().as_slice()).unwrap();
    let mut all = Definitions::new();
    for file in &set.file {
        for message in &file.message_type {
            add_message(&mut all, file.package(), message);
        }
        for one in &file.enum_type {
            add_enum(&mut all, file.package(), one);
        }
        for service in &file.service {
            let methods = service.method.iter().map(|method| {
                let side = |name: &str, streams| format!("{}{name}", if streams { "stream " } else { "" });
                let input = side(method.input_type(), method.client_streaming());
                let output = side(method.output_type(), method.server_streaming());
                (method.name().to_owned(), format!("{input} -> {output}"))
            });
            all.insert(format!("{}.{}", file.package(), service.name()), methods.collect());
        }
    }
    all
}

fn add_message(all: &mut Definitions, scope: &str, message: &prost_types::DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    let fields = message.field.iter().map(|field| {
        let kind = format!("{:?} {:?} {}", field.label(), field.r#type(), field.type_name());
        let packed = field.options.as_ref().and_then(|options| options.packed);
        let group = field.oneof_index.map(|index| message.oneof_decl[index as usize].name());
        (field.number().to_string(), format!("{} {kind} {packed:?} {group:?}", field.name()))
    });
    all.insert(name.clone(), fields.collect());
    for nested in &message.nested_type {
        add_message(all, &name, nested);
    }
    for one in &message.enum_type {
        add_enum(all, &name, one);
    }
}

fn add_enum(all: &mut Definitions, scope: &str, one: &prost_types::EnumDescriptorProto) {
    let values = one.value.iter().map(|value| (value.number().to_string(), value.name().to_owned()));
    all.insert(format!("{scope}.{}", one.name()), values.collect());
}

fn protos(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            protos(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
}

fn ours() -> Definitions {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/proto"));
    let mut files = Vec::new();
    protos(&folder, &mut files);
    definitions(&[folder], &files)
}

fn upstream() -> Definitions {
    let sources = programs::go_sources().unwrap();
    // The one import that none of the packages has: google.rpc.Status, which ttrpc's own text defines too.
    let borrowed = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(borrowed.path().join("google/rpc")).unwrap();
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/proto/google.rpc.proto");
    std::fs::copy(own, borrowed.path().join("google/rpc/status.proto")).unwrap();
    let mut all = Definitions::new();
    for (folder, below) in [
        ("github.com/containerd/containerd/api", ""),
        ("github.com/containerd/cgroups/v3/cgroup1", ""),
        ("github.com/containerd/cgroups/v3/cgroup2", ""),
        ("github.com/containerd/ttrpc", "github.com/containerd/ttrpc"),
        ("k8s.io/cri-api/pkg/apis/runtime", ""),
    ] {
        let mut files = Vec::new();
        protos(&sources.join(folder), &mut files);
        // As the files import each other: by their path in Go's tree, or by that below their module.
        all.extend(definitions(&[sources.join(below), sources.clone(), borrowed.path().into()], &files));
    }
    all
}

#[test]
fn what_we_share_with_upstream_is_the_same_on_the_wire() {
    let (ours, upstream) = (ours(), upstream());
    let mut wrong = BTreeSet::new();
    for (name, parts) in &ours {
        if name.starts_with("google.protobuf.") || UNPACKAGED.iter().any(|package| name.starts_with(package)) {
            continue;
        }
        let Some(theirs) = upstream.get(name) else {
            if !LATER.iter().any(|later| name.starts_with(later)) {
                wrong.insert(format!("{name}: upstream has no such thing"));
            }
            continue;
        };
        for (key, part) in parts {
            let full = format!("{name}.{key}");
            match theirs.get(key) {
                None if LATER.contains(&full.as_str()) => {}
                Some(theirs) if theirs.replace(OTHER_NAME.0, OTHER_NAME.1) == *part => {}
                theirs => drop(wrong.insert(format!("{full}: ours is {part}, theirs {theirs:?}"))),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(ours.len() > 400, "{} definitions of ours were compared", ours.len());
}

/// The shim answers version 2 of the Task service with the messages of version 3.
#[test]
fn both_versions_of_the_task_service_are_one() {
    let upstream = upstream();
    let of = |version: &str| -> Definitions {
        let prefix = format!("containerd.task.{version}.");
        let ours = upstream.iter().filter(|(name, _)| name.starts_with(&prefix));
        let neutral = |text: &str| text.replace(&prefix, "");
        ours.map(|(name, parts)| {
            (neutral(name), parts.iter().map(|(key, part)| (key.clone(), neutral(part))).collect())
        })
        .collect()
    };
    assert!(of("v2").len() > 20);
    assert_eq!(of("v2"), of("v3"));
}
