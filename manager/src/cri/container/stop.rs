//! StopContainer.

use std::sync::Arc;
use std::time::Duration;

use tare_proto::containerd::task::v3 as shim;
use tare_proto::runtime::v1 as pb;

use super::exit::End;
use crate::cri::record::Record;
use crate::cri::rows::{Container, ContainerState};
use crate::cri::spec::ImageConfig;
use crate::cri::{Cri, namespace};
use crate::error::{Error, Result};
use crate::names::Id;

/// A killed process that does not end by then hangs in the kernel.
const KILLED: Duration = Duration::from_secs(120);

impl Cri {
    /// Asks a container to end, and kills it when its time is up. One that is not there or not running is stopped.
    pub(in crate::cri) async fn stop_container(&self, id: &str, timeout: i64) -> Result<()> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        let patience = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
        if container.row().state() == ContainerState::Running && !patience.is_zero() {
            self.signal(&container, container.row().stop_signal).await?;
            let ended = container.until(|row| row.state() != ContainerState::Running);
            if tokio::time::timeout(patience, ended).await.is_ok() {
                return Ok(());
            }
        }
        self.kill_and_wait(&container).await
    }

    pub(in crate::cri) async fn kill_and_wait(&self, container: &Arc<Record<Container>>) -> Result<()> {
        // A start that is under way comes to its end first.
        drop(container.turn.write().await);
        if container.row().state() != ContainerState::Running {
            return Ok(());
        }
        self.signal(container, libc::SIGKILL).await?;
        let ended = container.until(|row| row.state() != ContainerState::Running);
        tokio::time::timeout(KILLED, ended).await.map_err(|_| {
            Error::Unavailable(format!(
                "killing container {:?}: it did not end within {} s",
                container.id,
                KILLED.as_secs()
            ))
        })
    }

    /// To the first process alone, but for a kill: with it go all others.
    async fn signal(&self, container: &Arc<Record<Container>>, signal: i32) -> Result<()> {
        let id = Id::parse(&container.id)?;
        let Ok(task) = self.parts.tasks.get(&namespace(), &id) else {
            // Its end was told, or nobody will ever tell it.
            return self.ended(container, End { code: super::exit::UNKNOWN.0, at: 0 }, false).await;
        };
        let request = shim::KillRequest {
            id: id.to_string(),
            exec_id: String::new(),
            signal: signal.unsigned_abs(),
            all: signal == libc::SIGKILL,
        };
        match task.call::<()>("Kill", &request).await {
            Ok(()) | Err(Error::NotFound(_) | Error::Unavailable(_)) => Ok(()), // its exit is on its way
            Err(error) => Err(error),
        }
    }
}

/// The signal that stops a container: its own, its image's, SIGTERM.
///
/// # Errors
/// The image names one that is none.
pub fn signal(config: &pb::ContainerConfig, image: &ImageConfig) -> Result<i32> {
    match pb::Signal::try_from(config.stop_signal) {
        Ok(pb::Signal::RuntimeDefault) if image.stop_signal.is_empty() => Ok(libc::SIGTERM),
        Ok(pb::Signal::RuntimeDefault) => by_name(&image.stop_signal)
            .ok_or_else(|| Error::InvalidArgument(format!("the image's stop signal {:?} is none", image.stop_signal))),
        Ok(given) => by_name(given.as_str_name())
            .ok_or_else(|| Error::InvalidArgument(format!("config.stop_signal: {} is none here", given.as_str_name()))),
        Err(_) => Err(Error::InvalidArgument(format!("config.stop_signal: {} is none", config.stop_signal))),
    }
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `SIGRTMAX-1`. Source: signal(7).
pub fn by_name(name: &str) -> Option<i32> {
    const NAMES: &[(&str, i32)] = &[
        ("ABRT", libc::SIGABRT),
        ("ALRM", libc::SIGALRM),
        ("BUS", libc::SIGBUS),
        ("CHLD", libc::SIGCHLD),
        ("CLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("FPE", libc::SIGFPE),
        ("HUP", libc::SIGHUP),
        ("ILL", libc::SIGILL),
        ("INT", libc::SIGINT),
        ("IO", libc::SIGIO),
        ("IOT", libc::SIGIOT),
        ("KILL", libc::SIGKILL),
        ("PIPE", libc::SIGPIPE),
        ("POLL", libc::SIGPOLL),
        ("PROF", libc::SIGPROF),
        ("PWR", libc::SIGPWR),
        ("QUIT", libc::SIGQUIT),
        ("SEGV", libc::SIGSEGV),
        ("STKFLT", libc::SIGSTKFLT),
        ("STOP", libc::SIGSTOP),
        ("SYS", libc::SIGSYS),
        ("TERM", libc::SIGTERM),
        ("TRAP", libc::SIGTRAP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("VTALRM", libc::SIGVTALRM),
        ("WINCH", libc::SIGWINCH),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
    ];
    const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
    if let Ok(number) = name.parse::<i32>() {
        return (1..=*REAL_TIME.end()).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // CRI's names have no signs: SIGRTMINPLUS3, SIGRTMAXMINUS1.
    for (words, from, sign) in [
        ("RTMINPLUS", *REAL_TIME.start(), 1),
        ("RTMIN+", *REAL_TIME.start(), 1),
        ("RTMAXMINUS", *REAL_TIME.end(), -1),
        ("RTMAX-", *REAL_TIME.end(), -1),
    ] {
        if let Some(number) = name.strip_prefix(words) {
            let number = from + sign * number.parse::<i32>().ok()?;
            return REAL_TIME.contains(&number).then_some(number);
        }
    }
    match name {
        "RTMIN" => Some(*REAL_TIME.start()),
        "RTMAX" => Some(*REAL_TIME.end()),
        name => NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_that_cri_names_is_one() {
        for number in 1..=65 {
            let signal = pb::Signal::try_from(number).unwrap();
            assert!(by_name(signal.as_str_name()).is_some(), "{}", signal.as_str_name());
        }
        for (name, number) in [("SIGTERM", 15), ("usr1", 10), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)] {
            assert_eq!(by_name(name), Some(number), "{name}");
        }
        for bad in ["", "SIG", "0", "65", "TERMINATE", "RTMIN+99"] {
            assert_eq!(by_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_containers_own_signal_wins_over_its_images() {
        let image = |name: &str| ImageConfig { stop_signal: name.into(), ..Default::default() };
        let mut config = pb::ContainerConfig::default();
        assert_eq!(signal(&config, &image("")).unwrap(), libc::SIGTERM);
        assert_eq!(signal(&config, &image("SIGQUIT")).unwrap(), libc::SIGQUIT);
        assert!(signal(&config, &image("NONSENSE")).is_err());
        config.set_stop_signal(pb::Signal::Sigusr2);
        assert_eq!(signal(&config, &image("SIGQUIT")).unwrap(), libc::SIGUSR2);
    }
}
