//! AppArmor: the profile that a container runs under. A pod that leaves the choice to the runtime gets ours, which is given
//! to the kernel when the first container needs it.
//!
//! Source: apparmor.d(5), apparmor_parser(8); containerd `internal/cri/server/container_create_linux.go` for which
//! profile is meant.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tare_proto::runtime::v1 as pb;
use tare_proto::runtime::v1::security_profile::ProfileType;

use super::Host;
use super::profile::profile;
use crate::error::{Doing as _, Error, Result};

/// Under containerd's name: tools that show what confines a pod know it.
const DEFAULT: &str = "cri-containerd.apparmor.d";
const TEXT: &str = include_str!("apparmor.profile");
const PARSER: &str = "/sbin/apparmor_parser";

/// The name of the profile, if there is to be one. Without a program that could load ours the host's own rules hold.
///
/// # Errors
/// It is not loaded or cannot be, or this host has no AppArmor.
pub fn name(security: &pb::LinuxContainerSecurityContext, host: &Host) -> Result<Option<String>> {
    // With neither field set, the kind is the runtime's default; the old field says unconfined in words.
    let old = &security.apparmor_profile;
    let new = security.apparmor.clone().or_else(|| {
        old.is_empty()
            .then(|| pb::SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() })
    });
    match profile("apparmor", new.as_ref(), old)? {
        (ProfileType::Unconfined, _) => Ok(host.apparmor.then(|| "unconfined".to_owned())),
        (ProfileType::RuntimeDefault, _) if host.apparmor && Path::new(PARSER).exists() => {
            if !is_loaded(DEFAULT)? {
                load(TEXT)?;
            }
            Ok(Some(DEFAULT.to_owned()))
        }
        (ProfileType::RuntimeDefault, _) => Ok(None),
        (ProfileType::Localhost, _) if !host.apparmor => {
            Err(Error::InvalidArgument("security_context.apparmor: AppArmor is not enabled on this host".into()))
        }
        (ProfileType::Localhost, name) if is_loaded(&name)? => Ok(Some(name)),
        (ProfileType::Localhost, name) => {
            Err(Error::InvalidArgument(format!("security_context.apparmor: profile {name:?} is not loaded")))
        }
    }
}

fn is_loaded(name: &str) -> Result<bool> {
    const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
    let loaded = fs::read_to_string(LOADED).doing(|| format!("reading {LOADED}"))?;
    Ok(loaded.lines().any(|line| line.rsplit_once(" (").map_or(line, |(known, _)| known) == name))
}

/// Compiles a profile and gives it to the kernel, in place of one of the same name.
fn load(text: &str) -> Result<()> {
    let doing = || format!("loading the AppArmor profile {DEFAULT} by {PARSER}");
    let mut parser = Command::new(PARSER)
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .doing(doing)?;
    if let Some(mut input) = parser.stdin.take() {
        input.write_all(text.as_bytes()).doing(doing)?;
    }
    let ended = parser.wait_with_output().doing(doing)?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(Error::Internal(format!("{}: {}: {}", doing(), ended.status, said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_apparmor_only_a_profile_that_is_named_is_missed() {
        let host = Host { apparmor: false, ..Host::look() };
        let mut security = pb::LinuxContainerSecurityContext::default();
        assert_eq!(name(&security, &host).unwrap(), None);
        for old in ["runtime/default", "unconfined"] {
            security.apparmor_profile = old.into();
            assert_eq!(name(&security, &host).unwrap(), None, "{old}");
        }
        security.apparmor_profile = "localhost/mine".into();
        let refused = name(&security, &host).unwrap_err().to_string();
        assert!(refused.contains("AppArmor is not enabled"), "{refused}");
    }

    #[test]
    fn our_profile_has_the_name_that_it_is_looked_for_by() {
        assert!(TEXT.contains(&format!("\nprofile {DEFAULT} flags=")));
    }
}
