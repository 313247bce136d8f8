//! A seccomp profile in docker's format as the runtime takes it: rules for other machines and other capabilities go.
//!
//! Source: moby profiles/seccomp; runtime-spec config-linux.md, "Seccomp".

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<Machine>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    listener_path: String,
    #[serde(default)]
    listener_metadata: String,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Machine {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// The profile for a container with these capabilities on this machine.
///
/// # Errors
/// `InvalidArgument`: it is not such a profile.
pub fn compile(profile: &Value, capabilities: &[String]) -> Result<Value> {
    let wrong = |why: String| Error::InvalidArgument(format!("reading the seccomp profile: {why}"));
    let profile = Profile::deserialize(profile).map_err(|error| wrong(error.to_string()))?;
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err(wrong("architectures and archMap are both there".into()));
    }
    let (machine, own) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        _ => ("amd64", "SCMP_ARCH_X86_64"),
    };
    let mut architectures = profile.architectures;
    if let Some(map) = profile.arch_map.into_iter().find(|map| map.architecture == own) {
        architectures.push(map.architecture);
        architectures.extend(map.sub_architectures.unwrap_or_default());
    }
    let kernel = kernel();
    let holds = |name: &String| capabilities.contains(name);
    let here = |name: &String| name == machine;
    let old = |least: &String| version(least).is_some_and(|least| kernel < least);
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        let (with, without) = (&rule.includes, &rule.excludes);
        let included = with.caps.iter().all(holds)
            && (with.arches.is_empty() || with.arches.iter().any(here))
            && !with.min_kernel.as_ref().is_some_and(old);
        let excluded = without.caps.iter().any(holds)
            || without.arches.iter().any(here)
            || without.min_kernel.as_ref().is_some_and(|least| !old(least));
        if !included || excluded {
            continue;
        }
        if !rule.name.is_empty() && !rule.names.is_empty() {
            return Err(wrong(format!("name and names are both there in the rule of {}", rule.name)));
        }
        let names = if rule.name.is_empty() { rule.names } else { vec![rule.name] };
        let mut call = json!({"names": names, "action": rule.action});
        if let Some(errno) = rule.errno_ret {
            call["errnoRet"] = errno.into();
        }
        if let Some(args) = rule.args.filter(|args| !args.is_empty()) {
            call["args"] = args.into();
        }
        syscalls.push(call);
    }
    let mut compiled = json!({"defaultAction": profile.default_action, "syscalls": syscalls});
    if let Some(errno) = profile.default_errno_ret {
        compiled["defaultErrnoRet"] = errno.into();
    }
    for (name, value) in [("architectures", architectures), ("flags", profile.flags)] {
        if !value.is_empty() {
            compiled[name] = json!(value);
        }
    }
    for (name, value) in [("listenerPath", profile.listener_path), ("listenerMetadata", profile.listener_metadata)] {
        if !value.is_empty() {
            compiled[name] = json!(value);
        }
    }
    Ok(compiled)
}

fn kernel() -> (u32, u32) {
    version(&rustix::system::uname().release().to_string_lossy()).unwrap_or_default()
}

/// The first two numbers of a kernel's version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_apply_by_capability_machine_and_kernel() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"name": "bpf", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
                {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_CHROOT"]}},
                {"names": ["s390"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
            ],
        });
        let compiled = compile(&profile, &["CAP_SYS_CHROOT".into()]).unwrap();
        let names: Vec<&str> =
            compiled["syscalls"].as_array().unwrap().iter().map(|rule| rule["names"][0].as_str().unwrap()).collect();
        assert_eq!(names, ["read", "chroot", "ptrace"]);
        assert!(compiled["architectures"].as_array().is_some_and(|list| !list.is_empty()));
        assert!(compile(&json!({"syscalls": []}), &[]).is_err());
    }
}
