//! Generates the messages, and with feature `grpc` the services, from proto/. Parsed by protox: no protoc is needed.

use std::env;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files: Vec<PathBuf> =
        std::fs::read_dir("proto")?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    let descriptors = protox::compile(&files, ["proto"])?;
    let mut messages = prost_build::Config::new();
    messages.enable_type_names();
    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        shown_as_json(&mut messages);
        tonic_prost_build::configure().include_file("all.rs").compile_fds_with_config(descriptors, messages)?;
    } else {
        messages.include_file("all.rs").compile_fds(descriptors)?;
    }
    Ok(())
}

/// What CRI's clients are shown of a configuration is JSON in the words of its fields, without those that are not set: as Go
/// writes these messages.
fn shown_as_json(messages: &mut prost_build::Config) {
    const CONFIGURATIONS: &[&str] = &[
        "CDIDevice",
        "Capability",
        "ContainerConfig",
        "ContainerMetadata",
        "DNSConfig",
        "Device",
        "HugepageLimit",
        "IDMapping",
        "ImageSpec",
        "Int64Value",
        "KeyValue",
        "LinuxContainerConfig",
        "LinuxContainerResources",
        "LinuxContainerSecurityContext",
        "LinuxPodSandboxConfig",
        "LinuxSandboxSecurityContext",
        "Mount",
        "NamespaceOption",
        "PodSandboxConfig",
        "PodSandboxMetadata",
        "PortMapping",
        "SELinuxOption",
        "UserNamespace",
        "WindowsContainerConfig",
        "WindowsContainerResources",
        "WindowsContainerSecurityContext",
        "WindowsCpuGroupAffinity",
        "WindowsNamespaceOption",
        "WindowsPodSandboxConfig",
        "WindowsSandboxSecurityContext",
    ];
    const UNSET: &str = "#[serde(skip_serializing_if = \"crate::json::is_unset\")]";
    for name in CONFIGURATIONS {
        let path = format!(".runtime.v1.{name}");
        messages.message_attribute(&path, "#[derive(serde::Serialize)]").field_attribute(&path, UNSET);
    }
    // The enumeration inside it would take the fields' attributes too.
    messages.message_attribute(".runtime.v1.SecurityProfile", "#[derive(serde::Serialize)]");
    for field in ["profile_type", "localhost_ref"] {
        messages.field_attribute(format!(".runtime.v1.SecurityProfile.{field}"), UNSET);
    }
    messages.field_attribute(".runtime.v1.KeyValue.value", "#[serde(serialize_with = \"crate::json::text\")]");
}
