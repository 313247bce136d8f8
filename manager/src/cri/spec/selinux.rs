//! SELinux: under which label a container runs, and its files are mounted. Pods give all of it, or, mostly, a level alone.
//!
//! Source: cri-api `api.proto`, `SELinuxOption`; lxc_contexts(5) for what is not given; containerd
//! `internal/cri/server/helpers_selinux_linux.go`.

use std::fs;

use tare_proto::runtime::v1 as pb;

use super::Host;
use crate::cri::rows;
use crate::error::{Error, Result};

pub struct Label {
    pub process: String,
    pub mount: String,
}

/// The labels, where SELinux is on; elsewhere options of SELinux mean nothing, and kubelets send them all the same.
///
/// # Errors
/// The level is none.
pub fn label(security: &pb::LinuxContainerSecurityContext, pod: &rows::Pod, host: &Host) -> Result<Option<Label>> {
    let pods = pod.security().selinux_options;
    let Some(options) = security.selinux_options.clone().or(pods).filter(|_| host.selinux && !security.privileged)
    else {
        return Ok(None);
    };
    of(&options, &usual()).map(Some)
}

/// Labels as the host's policy has them for containers: of processes, of files.
fn usual() -> (String, String) {
    let kind = fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let kind = kind.lines().find_map(|line| line.strip_prefix("SELINUXTYPE=")).unwrap_or("targeted").trim().to_owned();
    let contexts = fs::read_to_string(format!("/etc/selinux/{kind}/contexts/lxc_contexts")).unwrap_or_default();
    let named = |name: &str| {
        let mut rows = contexts.lines().filter_map(|line| line.split_once('='));
        let found = rows.find(|(key, _)| key.trim() == name);
        found.map(|(_, label)| label.trim().trim_matches('"').to_owned()).filter(|label| !label.is_empty())
    };
    (
        named("process").unwrap_or_else(|| "system_u:system_r:container_t:s0".into()),
        named("file").unwrap_or_else(|| "system_u:object_r:container_file_t:s0".into()),
    )
}

fn of(options: &pb::SeLinuxOption, (process, file): &(String, String)) -> Result<Label> {
    if !options.level.is_empty() && !is_level(&options.level) {
        let text = format!("security_context.selinux_options.level: {:?} is no level", options.level);
        return Err(Error::InvalidArgument(text));
    }
    let with = |label: &str, given: [&str; 4]| {
        let mut usual = label.splitn(4, ':');
        given.map(|part| match (usual.next(), part) {
            (usual, "") => usual.unwrap_or_default().to_owned(),
            (_, given) => given.to_owned(),
        })
    };
    let options = [&options.user, &options.role, &options.r#type, &options.level].map(String::as_str);
    let [user, .., level] = options;
    Ok(Label { process: with(process, options).join(":"), mount: with(file, [user, "", "", level]).join(":") })
}

/// `s0`, `s0:c1,c2`, `s0-s0:c0.c1023`.
fn is_level(level: &str) -> bool {
    let number = |text: &str, letter| {
        let digits = text.strip_prefix(letter).unwrap_or_default();
        (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let categories = |text: &str| text.split(',').all(|range| range.splitn(2, '.').all(|one| number(one, 'c')));
    level.splitn(2, '-').all(|end| match end.split_once(':') {
        Some((sensitivity, rest)) => number(sensitivity, 's') && categories(rest),
        None => number(end, 's'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_leaves_out_of_its_label_is_the_policys() {
        let usual = ("system_u:system_r:container_t:s0".to_owned(), "system_u:object_r:container_file_t:s0".to_owned());
        let labels = |user: &str, role: &str, kind: &str, level: &str| {
            let [user, role, r#type, level] = [user, role, kind, level].map(str::to_owned);
            let label = of(&pb::SeLinuxOption { user, role, r#type, level }, &usual).map_err(|error| error.to_string());
            label.map(|label| (label.process, label.mount))
        };
        for (given, process, mount) in [
            (["", "", "", ""], "system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"),
            (
                ["", "", "", "s0:c4,c5"],
                "system_u:system_r:container_t:s0:c4,c5",
                "system_u:object_r:container_file_t:s0:c4,c5",
            ),
            (["u", "r", "spc_t", "s1"], "u:r:spc_t:s1", "u:object_r:container_file_t:s1"),
        ] {
            let [user, role, kind, level] = given;
            assert_eq!(labels(user, role, kind, level).unwrap(), (process.into(), mount.into()), "{given:?}");
        }
        assert!(
            labels("", "", "", "s0,c4,c5").unwrap_err().contains("selinux_options.level: \"s0,c4,c5\" is no level")
        );
    }

    #[test]
    fn a_level_is_a_sensitivity_or_two_with_categories() {
        for good in ["s0", "s0:c1,c2", "s0-s0:c0.c1023", "s0:c0.c5,c9"] {
            assert!(is_level(good), "{good}");
        }
        for bad in ["", "s", "0", "s0,c4,c5", "s0:", "s0:c1,", "s0:c12345", "s0-", "s0:c1 x"] {
            assert!(!is_level(bad), "{bad}");
        }
    }
}
