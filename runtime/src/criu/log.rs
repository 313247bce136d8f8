//! CRIU's log: what of it belongs into an error.

use std::path::Path;

/// The last error in it that says why: those behind it tell only that the rest was undone.
pub fn reason(log: &Path) -> Option<String> {
    let text = std::fs::read(log).ok()?; // without a log there is no more to say than CRIU's answer
    last_reason(&String::from_utf8_lossy(&text))
}

/// Lines are `(seconds) Error (file:line): words`. Those without a time are said by children on their own.
fn last_reason(text: &str) -> Option<String> {
    const NO_REASON: &[&str] = &["FAILED.", "exited, status=", "killed by signal"];
    let mut words = text.lines().filter(|line| line.starts_with('(')).filter_map(|line| {
        let (_, error) = line.split_once("Error (")?;
        Some(error.split_once("): ")?.1)
    });
    words.rfind(|words| !NO_REASON.iter().any(|no| words.contains(no))).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_error_that_is_not_about_undoing() {
        let log = "(00.010) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (00.211) net: Lock network\n\
                   Error (criu/util.c:642): execvp(\"iptables-restore\", ...) failed: No such file or directory\n\
                   (00.213) Error (criu/util.c:657): exited, status=1\n\
                   (00.215) Error (criu/net.c:3436): net: Locking network failed: iptables-restore returned -1.\n\
                   (00.217) Error (criu/util.c:657): exited, status=1\n\
                   (00.221) Error (criu/cr-dump.c:1975): Dumping FAILED.\n";
        assert_eq!(last_reason(log).as_deref(), Some("net: Locking network failed: iptables-restore returned -1."));
        assert_eq!(last_reason("(00.1) fine\n"), None);
    }
}
