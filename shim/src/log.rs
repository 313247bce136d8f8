//! The shim's own log: standard error, which is the daemon's fifo `log` in the bundle, in logrus' text form.
//!
//! The fifo does not block: with no daemon to read it, lines are lost rather than containers held up.

use std::io::Write as _;
use std::time::SystemTime;

use prost_types::Timestamp;

/// Something went wrong that no caller is told of.
pub fn warn(text: &str) {
    line("warning", text);
}

fn line(level: &str, text: &str) {
    let time = Timestamp::from(SystemTime::now());
    let _ = writeln!(std::io::stderr(), "time=\"{time}\" level={level} msg={text:?}");
}

/// A line that is no log.
pub fn plain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
