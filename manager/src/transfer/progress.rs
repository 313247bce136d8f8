//! How far things have come, for whoever looks. Only the last word on each thing is kept: who reads slowly misses what is
//! outdated, never what is final, and nothing waits for a reader.

use std::sync::{Arc, Mutex, PoisonError};

use tare_proto::containerd::types::Descriptor;
use tokio::sync::Notify;

/// The last word on one thing; without a name, on the whole.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// `waiting`, `downloading`, `uploading`, `extracting`, `complete`, `already exists`, `saved` …
    pub event: String,
    pub name: String,
    pub parent: Option<String>,
    pub done: u64,
    pub total: u64,
    pub what: Option<Descriptor>,
}

#[derive(Default)]
struct Board {
    states: Vec<State>,
    /// Which of them nobody has seen yet.
    new: Vec<usize>,
    ended: bool,
}

/// Clones share one board.
#[derive(Clone, Default)]
pub struct Progress {
    board: Arc<Mutex<Board>>,
    changed: Arc<Notify>,
}

impl Progress {
    /// A word on the whole.
    pub fn say(&self, event: impl Into<String>) {
        self.tell(State { event: event.into(), name: String::new(), parent: None, done: 0, total: 0, what: None });
    }

    pub fn tell(&self, state: State) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &State| known.name == state.name && (!state.name.is_empty() || known.event == state.event);
        let at = match board.states.iter().position(same) {
            Some(at) => {
                let known = &board.states[at];
                let (parent, what) = (known.parent.clone(), known.what.clone());
                board.states[at] = State { parent: state.parent.or(parent), what: state.what.or(what), ..state };
                at
            }
            None => {
                board.states.push(state);
                board.states.len() - 1
            }
        };
        if !board.new.contains(&at) {
            board.new.push(at);
        }
        drop(board);
        self.changed.notify_one();
    }

    /// Nothing more is told.
    pub fn end(&self) {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.changed.notify_one();
    }

    /// What has changed since the last time, in order; none when all was told. For one reader.
    pub async fn next(&self) -> Option<Vec<State>> {
        loop {
            {
                let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
                let new = std::mem::take(&mut board.new);
                if !new.is_empty() {
                    return Some(new.into_iter().map(|at| board.states[at].clone()).collect());
                }
                if board.ended {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(name: &str, event: &str, done: u64) -> State {
        State { event: event.into(), name: name.into(), parent: None, done, total: 9, what: None }
    }

    #[tokio::test]
    async fn a_slow_reader_misses_what_is_outdated_and_never_the_end() {
        let progress = Progress::default();
        for done in 0..10_000 {
            progress.tell(state("a", "downloading", done));
        }
        progress.tell(State { parent: Some("image".into()), ..state("b", "waiting", 0) });
        progress.tell(state("a", "complete", 9));
        progress.tell(state("b", "complete", 9));
        progress.end();
        let told = progress.next().await.unwrap();
        let expected = [state("a", "complete", 9), State { parent: Some("image".into()), ..state("b", "complete", 9) }];
        assert_eq!(told, expected);
        assert_eq!(progress.next().await, None);
    }
}
