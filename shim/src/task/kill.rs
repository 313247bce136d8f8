//! `Kill`: a signal to one process, or to all of a container.

use tare_proto::containerd::task::v3::KillRequest;
use tare_proto::ttrpc::Error;

use super::process::finished;
use super::{Supervisor, failed, invalid};
use crate::phase::Phase;
use crate::runtime::Streams;

impl Supervisor {
    pub(super) async fn kill(&self, request: KillRequest) -> Result<(), Error> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let signal = i32::try_from(request.signal).ok().filter(|signal| (0..=64).contains(signal));
        let signal = signal.ok_or_else(|| invalid(format!("signal {}: there is no such signal", request.signal)))?;
        if matches!(process.phase(), Phase::Stopped(_) | Phase::Early(_) | Phase::Gone) {
            return Err(finished());
        }
        let frozen = matches!(process.phase(), Phase::Pausing | Phase::Paused);
        let deadly = signal == libc::SIGKILL && (container.outlives_init || frozen);
        if !process.exec.is_empty() || !(request.all || deadly) {
            return process.signal(signal);
        }
        // Only the runtime knows all processes of a container, and how to thaw one that cannot die frozen.
        let number = signal.to_string();
        let mut words = vec!["kill"];
        words.extend(request.all.then_some("--all"));
        words.extend([container.id.as_str(), &number]);
        let killed = container.runtime.run(&self.children, &words, Streams::null()).await;
        killed.map_err(|error| {
            let text = error.to_string();
            // What the runtime says is all that there is: go-runc tells these apart by the same words.
            let gone = ["process already finished", "container not running", "no such process", "does not exist"];
            if gone.iter().any(|words| text.contains(words)) { finished() } else { failed(text) }
        })
    }
}
