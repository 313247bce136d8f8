//! CRIU's log: what of it belongs into an error.

use std::path::Path;

/// What it has failed of, as far as the log tells: errors behind the failure are about undoing.
pub fn reason(log: &Path) -> Option<String> {
    let text = std::fs::read(log).ok()?; // without a log there is no more to say than CRIU's answer
    last_reason(&String::from_utf8_lossy(&text))
}

/// Lines are `(seconds) Error (file:line): words`; those without a time are said by children on their own. Of errors that
/// follow one another the first is the cause and the others are who has heard of it.
fn last_reason(text: &str) -> Option<String> {
    const NO_REASON: &[&str] = &["exited, status=", "killed by signal"];
    let (mut reason, mut following) = (None, false);
    for line in text.lines().take_while(|line| !line.contains(" FAILED.")) {
        let error = line.split_once("Error (").and_then(|(before, error)| Some((before, error.split_once("): ")?.1)));
        match error {
            None => following = false,
            Some((before, words)) if before.starts_with('(') && !NO_REASON.iter().any(|no| words.contains(no)) => {
                if !following {
                    reason = Some(words.to_owned());
                }
                following = true;
            }
            Some(_) => {}
        }
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_first_of_the_last_errors_before_the_failure() {
        let log = "(00.010) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (00.211) net: Lock network\n\
                   Error (criu/util.c:642): execvp(\"iptables-restore\", ...) failed: No such file or directory\n\
                   (00.213) Error (criu/util.c:657): exited, status=1\n\
                   (00.215) Error (criu/net.c:3436): net: Locking network failed: iptables-restore returned -1.\n\
                   (00.217) Error (criu/util.c:657): exited, status=1\n\
                   (00.218) net: Unlock network\n\
                   (00.221) Error (criu/cr-dump.c:1975): Dumping FAILED.\n\
                   (00.222) Error (criu/cgroup.c:2055): cg: cgroupd: recv req error: No such file or directory\n";
        assert_eq!(last_reason(log).as_deref(), Some("net: Locking network failed: iptables-restore returned -1."));
        let chain = "(00.213)      1: Error (criu/files-reg.c:2379): Can't restore file pos: Illegal seek\n\
                     (00.213)      1: Error (criu/files.c:1221): Unable to open fd=2 id=0x5\n\
                     (00.227) Error (criu/cr-restore.c:2331): Restoring FAILED.\n";
        assert_eq!(last_reason(chain).as_deref(), Some("Can't restore file pos: Illegal seek"));
        assert_eq!(last_reason("(00.1) fine\n"), None);
    }
}
