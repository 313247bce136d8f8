//! `tare state`: what a container is, as JSON in runc's shape.
//!
//! Source: runtime-spec runtime.md, "State"; runc-state(8).

use serde::Serialize;

use super::flags::{Order, parse};
use super::{Error, Global, only_id};
use crate::state::{State, StateDir, Status};

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let id = only_id("state", &parse(words, &[], Order::Anywhere)?.words)?;
    let entry = StateDir::look(&global.root, &id);
    let state = entry.read()?;
    let shown = Shown::of(&state, state.status(&entry), String::new());
    print!("{}", serde_json::to_string_pretty(&shown).expect("only strings are keys"));
    Ok(0)
}

/// The keys that callers decode, in runc's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown<'a> {
    oci_version: &'a str,
    pub id: &'a str,
    /// 0 once it has stopped.
    pub pid: i32,
    pub status: &'static str,
    pub bundle: &'a std::path::Path,
    rootfs: &'a std::path::Path,
    pub created: String,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a std::collections::BTreeMap<String, String>,
    pub owner: String,
}

impl<'a> Shown<'a> {
    pub fn of(state: &'a State, status: Status, owner: String) -> Shown<'a> {
        Shown {
            oci_version: &state.oci_version,
            id: state.id.as_str(),
            pid: if status == Status::Stopped { 0 } else { state.pid },
            status: status.as_str(),
            bundle: &state.bundle,
            rootfs: &state.rootfs,
            created: humantime::format_rfc3339_nanos(state.created).to_string(),
            annotations: &state.annotations,
            owner,
        }
    }
}
