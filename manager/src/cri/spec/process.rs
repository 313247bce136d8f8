//! The process: what it runs, as whom, with which rights.

use serde_json::{Value, json};
use tare_proto::runtime::v1 as pb;

use super::{Given, apparmor, capability, selinux};
use crate::error::{Error, Result};
use crate::oci;

pub fn process(given: &Given<'_>, security: &pb::LinuxContainerSecurityContext) -> Result<Value> {
    let config = given.config;
    let cwd = [&config.working_dir, &given.image.working_dir].into_iter().find(|dir| !dir.is_empty());
    let capabilities = capabilities(security)?;
    let ambient = ambient(security)?;
    let mut process = json!({
        "terminal": config.tty,
        "user": {"uid": given.user.uid, "gid": given.user.gid, "additionalGids": given.user.groups},
        "args": args(given)?,
        "env": environment(given),
        "cwd": cwd.map_or("/", String::as_str),
        "noNewPrivileges": security.no_new_privs,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            // A capability can be ambient only while it is inheritable: capabilities(7).
            "inheritable": ambient,
            "ambient": ambient,
        },
        "oomScoreAdj": given.resources().oom_score_adj.max(given.host.lowest_oom_score),
    });
    if !security.privileged
        && let Some(name) = apparmor::name(security, given.host)?
    {
        process["apparmorProfile"] = json!(name);
    }
    if let Some(label) = selinux::label(security, given.pod, given.host)? {
        process["selinuxLabel"] = json!(label.process);
    }
    Ok(process)
}

/// Kubernetes' rule: a command replaces the image's entry point and takes its arguments away, arguments alone are for
/// the entry point.
fn args(given: &Given<'_>) -> Result<Vec<String>> {
    let (config, image) = (given.config, given.image);
    let mut args = config.command.clone();
    if config.command.is_empty() {
        args = image.entrypoint.clone().unwrap_or_default();
        args.extend(if config.args.is_empty() { image.cmd.clone().unwrap_or_default() } else { config.args.clone() });
    } else {
        args.extend(config.args.iter().cloned());
    }
    if args.is_empty() {
        return Err(Error::InvalidArgument("command: no command specified, by the image or by the container".into()));
    }
    Ok(args)
}

/// The image's variables, then the container's, which win.
fn environment(given: &Given<'_>) -> Vec<String> {
    let mut environment: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match environment.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => environment.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    if given.config.tty {
        set("TERM", "xterm");
    }
    set("HOSTNAME", &given.host.name_for(given.pod.config()));
    for variable in given.image.env.iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(name, value);
    }
    for variable in &given.config.envs {
        set(&variable.key, &String::from_utf8_lossy(&variable.value)); // as JSON, which is text, has it
    }
    environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// What a container begins with, and then as asked: `ALL` first, single ones after it, dropped ones last.
pub fn capabilities(security: &pb::LinuxContainerSecurityContext) -> Result<Vec<String>> {
    const FIELD: &str = "security_context.capabilities";
    if security.privileged {
        return Ok(capability::own());
    }
    let asked = security.capabilities.clone().unwrap_or_default();
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut set: Vec<String> = oci::CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    if all(&asked.add_capabilities) {
        set = capability::own();
    }
    if all(&asked.drop_capabilities) {
        set.clear();
    }
    let single = |names: &[String]| {
        let names = names.iter().filter(|name| !name.eq_ignore_ascii_case("ALL"));
        names.map(|name| capability::full(FIELD, name)).collect::<Result<Vec<_>>>()
    };
    for name in single(&asked.add_capabilities)?.into_iter().chain(ambient(security)?) {
        if !set.contains(&name) {
            set.push(name);
        }
    }
    let dropped = single(&asked.drop_capabilities)?;
    set.retain(|name| !dropped.contains(name));
    set.sort();
    Ok(set)
}

fn ambient(security: &pb::LinuxContainerSecurityContext) -> Result<Vec<String>> {
    let asked = security.capabilities.as_ref().map(|asked| asked.add_ambient_capabilities.clone()).unwrap_or_default();
    if asked.iter().any(|name| name.eq_ignore_ascii_case("ALL")) {
        return Ok(capability::own());
    }
    asked.iter().map(|name| capability::full("security_context.capabilities.add_ambient_capabilities", name)).collect()
}
