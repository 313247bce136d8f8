//! `tare restore`: a container from what `tare checkpoint` has written, and in the foreground its end.
//!
//! Source: runc-restore(8).

use super::checkpoint::{asked, warn_without_root};
use super::create::console;
use super::flags::{Flag, Order, parse, switch, value};
use super::foreground::{Foreground, Terminal};
use super::{Error, Global, delete, only_id};
use crate::bundle::Bundle;
use crate::container::Ground;
use crate::error::Doing as _;
use crate::{criu, seccomp};

const FLAGS: &[Flag] = &[
    value(&["console-socket"]),
    value(&["image-path"]),
    value(&["work-path"]),
    switch(&["tcp-established"]),
    switch(&["tcp-close"]),
    switch(&["ext-unix-sk"]),
    switch(&["shell-job"]),
    switch(&["file-locks"]),
    value(&["manage-cgroups-mode"]),
    value(&["network-lock"]),
    value(&["bundle", "b"]),
    switch(&["detach", "d"]),
    value(&["pid-file"]),
    switch(&["no-subreaper"]),
    switch(&["no-pivot"]), // CRIU changes the root in its own way
    value(&["empty-ns"]),
    switch(&["auto-dedup"]),
    switch(&["lazy-pages"]),
    value(&["lsm-profile"]),
    value(&["lsm-mount-context"]),
];

pub fn main(global: &Global, words: &[String]) -> Result<i32, Error> {
    let parsed = parse(words, FLAGS, Order::Anywhere)?;
    let id = only_id("restore", &parsed.words)?;
    let path = |name: &str| parsed.value(name).filter(|path| !path.is_empty()).map(std::path::Path::new);
    warn_without_root(global);
    let asked = asked(&parsed)?;
    let detach = parsed.is_set("detach");
    let mut bundle = Bundle::open(path("bundle").unwrap_or_else(|| ".".as_ref()))?;
    if !detach && !parsed.is_set("no-subreaper") {
        // What the container leaves behind comes to us and not to whoever started us.
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
            .doing(|| "becoming a subreaper".into())?;
    }
    let (terminal, ours) = match console(&bundle, path("console-socket"), detach)? {
        None if bundle.process().terminal => {
            let (theirs, ours) = Terminal::pair()?;
            (Some(theirs), Some(ours))
        }
        given => (given, None),
    };
    let foreground = if detach { None } else { Some(Foreground::begin()?) }; // before there is a child to forward to
    let filter = bundle.linux().seccomp.as_ref().map(seccomp::compile).transpose()?;
    let ground = Ground::lay(global, &id, &mut bundle, filter.as_ref(), false)?;
    let container = criu::restore(ground, &bundle, &asked, terminal)?;
    container.write_pid(path("pid-file"))?;
    let kept = container.keep();
    let Some(foreground) = foreground else { return Ok(0) };
    let code = foreground.wait(&kept.init, ours, None)?;
    delete::remove_ended(global, &kept.state)?;
    Ok(code)
}
