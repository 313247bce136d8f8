//! `tare checkpoint`: what a running container is goes to files, from which `tare restore` makes it again.
//!
//! Source: runc-checkpoint(8).

use std::path::PathBuf;

use super::flags::{Flag, Order, Parsed, parse, switch, value};
use super::{Error, Global, delete, only_id};
use crate::bundle::Bundle;
use crate::criu::{self, Asked};
use crate::notify;
use crate::state::{StateDir, Status};

const FLAGS: &[Flag] = &[
    value(&["image-path"]),
    value(&["work-path"]),
    value(&["parent-path"]),
    switch(&["leave-running"]),
    switch(&["tcp-established"]),
    switch(&["tcp-skip-in-flight"]),
    switch(&["tcp-close"]),
    switch(&["link-remap"]),
    switch(&["ext-unix-sk"]),
    switch(&["shell-job"]),
    switch(&["lazy-pages"]),
    value(&["status-fd"]),
    value(&["page-server"]),
    switch(&["file-locks"]),
    switch(&["pre-dump"]),
    value(&["manage-cgroups-mode"]),
    value(&["network-lock"]),
    value(&["empty-ns"]),
    switch(&["auto-dedup"]),
];

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::Anywhere)?;
    let id = only_id("checkpoint", &parsed.words)?;
    warn_without_root(global);
    let entry = StateDir::open(&global.root, &id)?;
    let state = entry.read()?;
    match state.status(&entry) {
        Status::Running | Status::Paused => {}
        status => {
            return Err(Error::Refused(format!("container cannot be checkpointed in {} state", status.as_str())));
        }
    }
    let asked = asked(&parsed)?;
    let goes_on = asked.leave_running || asked.pre_dump;
    let mut bundle = Bundle::open(&state.bundle)?;
    bundle.spec.mounts.extend(notify::mount_of(entry.path()));
    if !goes_on && bundle.spec.root.as_ref().is_some_and(|root| root.readonly) {
        global
            .log
            .warn("root.readonly: criu makes a folder in the root to change to it, so that it cannot restore this");
    }
    criu::dump(&state, &bundle, asked)?;
    if !goes_on {
        delete::remove_dumped(global, entry, &state)?;
    }
    Ok(0)
}

/// The flags of both commands, checked; each takes those that it has.
pub fn asked(parsed: &Parsed) -> Result<Asked, Error> {
    let text = |name: &str| parsed.value(name).filter(|value| !value.is_empty());
    let path = |name: &str| text(name).map(std::path::absolute).transpose();
    let absolute = |error: std::io::Error| Error::Usage(format!("the working folder: {error}"));
    let images = path("image-path").map_err(absolute)?.map_or_else(|| std::path::absolute("checkpoint"), Ok);
    let images: PathBuf = images.map_err(absolute)?;
    if let Some(kind) = parsed.values("empty-ns").find(|kind| *kind != "network") {
        return Err(Error::Usage(format!("--empty-ns: namespace {kind:?} is not supported"))); // network always is
    }
    Ok(Asked {
        work: path("work-path").map_err(absolute)?,
        parent: text("parent-path").map(|path| criu::parent(&images, path)).transpose()?,
        leave_running: parsed.is_set("leave-running"),
        tcp_established: parsed.is_set("tcp-established"),
        tcp_skip_in_flight: parsed.is_set("tcp-skip-in-flight"),
        tcp_close: parsed.is_set("tcp-close"),
        link_remap: parsed.is_set("link-remap"),
        ext_unix_sk: parsed.is_set("ext-unix-sk"),
        shell_job: parsed.is_set("shell-job"),
        lazy_pages: parsed.is_set("lazy-pages"),
        status: match parsed.value("status-fd") {
            Some(_) => Some(parsed.number("status-fd")?).filter(|number| *number >= 0).map(criu::status).transpose()?,
            None => None,
        },
        page_server: text("page-server").map(criu::page_server).transpose()?,
        file_locks: parsed.is_set("file-locks"),
        pre_dump: parsed.is_set("pre-dump"),
        auto_dedup: parsed.is_set("auto-dedup"),
        cgroups: criu::cgroup_mode(text("manage-cgroups-mode").unwrap_or_default())?,
        network_lock: text("network-lock").map(criu::network_lock).transpose()?,
        lsm_profile: text("lsm-profile").map(str::to_owned),
        lsm_mount_context: text("lsm-mount-context").map(str::to_owned),
        images,
    })
}

/// CRIU needs rights that a user namespace does not give.
pub fn warn_without_root(global: &Global) {
    if crate::rootless::unprivileged() || crate::rootless::inside() {
        global.log.warn("checkpoint and restore are untested with rootless containers");
    }
}
