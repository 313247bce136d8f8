//! The program, its variables and its identity.

use serde_json::{Value, json};

use super::{Asked, ImageConfig, User};
use crate::error::{Error, Result};

/// The `process` object but for its capabilities.
pub fn process(image: &ImageConfig, asked: &Asked, user: &User) -> Result<Value> {
    let workdir = asked.workdir.as_deref().unwrap_or(&image.working_dir);
    let workdir = if workdir.is_empty() { "/" } else { workdir };
    if !workdir.starts_with('/') {
        return Err(Error::InvalidArgument(format!("--workdir {workdir}: is not an absolute path")));
    }
    let mut process = json!({
        "terminal": asked.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": args(image, asked)?,
        "env": environment(image, asked, user),
        "cwd": workdir,
        "noNewPrivileges": asked.no_new_privileges,
    });
    if let Some(adjust) = asked.oom_score_adj {
        process["oomScoreAdj"] = adjust.into();
    }
    if let Some(profile) = &asked.apparmor {
        process["apparmorProfile"] = profile.as_str().into();
    }
    if !asked.rlimits.is_empty() {
        process["rlimits"] =
            asked.rlimits.iter().map(|(kind, soft, hard)| json!({"type": kind, "soft": soft, "hard": hard})).collect();
    }
    Ok(process)
}

/// docker's rule: an entry point that is given takes the image's command away with it.
fn args(image: &ImageConfig, asked: &Asked) -> Result<Vec<String>> {
    let mut args: Vec<String> = match &asked.entrypoint {
        Some(entrypoint) => Some(entrypoint.clone()).filter(|text| !text.is_empty()).into_iter().collect(),
        None => image.entrypoint.clone().unwrap_or_default(),
    };
    if !asked.args.is_empty() {
        args.extend(asked.args.iter().cloned());
    } else if asked.entrypoint.is_none() {
        args.extend(image.cmd.clone().unwrap_or_default());
    }
    if args.is_empty() {
        return Err(Error::InvalidArgument("the image names no command, and none was given".into()));
    }
    Ok(args)
}

/// Ours, then the image's variables, then those given, which win.
fn environment(image: &ImageConfig, asked: &Asked, user: &User) -> Vec<String> {
    let mut own = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    own.extend(asked.hostname.as_ref().map(|name| format!("HOSTNAME={name}")));
    own.extend(asked.terminal.then(|| "TERM=xterm".to_owned()));
    own.push(format!("HOME={}", user.home));
    let mut environment = Vec::new();
    for variable in own.iter().chain(image.env.iter().flatten()).chain(&asked.env) {
        set(&mut environment, variable);
    }
    environment
}

/// Sets `NAME=VALUE` in place of an older value; a `NAME` alone takes the variable away.
pub fn set(environment: &mut Vec<String>, variable: &str) {
    let name = variable.split_once('=').map_or(variable, |(name, _)| name);
    let known = environment.iter().position(|old| old.split_once('=').is_some_and(|(old, _)| old == name));
    match (known, variable.contains('=')) {
        (Some(at), true) => variable.clone_into(&mut environment[at]),
        (Some(at), false) => drop(environment.remove(at)),
        (None, true) => environment.push(variable.to_owned()),
        (None, false) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: Some(vec!["/entry".into()]),
            cmd: Some(vec!["default".into()]),
            env: Some(vec!["A=image".into(), "PATH=/bin".into(), "GONE=1".into()]),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn a_command_and_an_entry_point_replace_the_images_as_in_docker() {
        let run = |entrypoint: Option<&str>, given: &[&str]| {
            let asked = Asked {
                entrypoint: entrypoint.map(str::to_owned),
                args: given.iter().map(|arg| (*arg).to_owned()).collect(),
                ..Asked::default()
            };
            args(&image(), &asked)
        };
        assert_eq!(run(None, &[]).unwrap(), ["/entry", "default"]);
        assert_eq!(run(None, &["x"]).unwrap(), ["/entry", "x"]);
        assert_eq!(run(Some("/other"), &[]).unwrap(), ["/other"]);
        assert_eq!(run(Some(""), &["sh"]).unwrap(), ["sh"]);
        assert!(run(Some(""), &[]).is_err());
    }

    #[test]
    fn given_variables_win_over_the_images_and_a_bare_name_takes_one_away() {
        let asked = Asked { env: vec!["A=mine".into(), "B=2=3".into(), "GONE".into()], ..Asked::default() };
        let environment = environment(&image(), &asked, &User::default());
        assert_eq!(environment, ["PATH=/bin", "HOME=/root", "A=mine", "B=2=3"]);
    }
}
