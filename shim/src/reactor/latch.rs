//! Waiting for another future.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// A value that is set once; any number may wait for it, before or after.
pub struct Latch<T>(RefCell<Option<T>>, Bell);

impl<T: Clone> Latch<T> {
    pub fn new() -> Latch<T> {
        Latch(RefCell::new(None), Bell::default())
    }

    /// Sets the value, if there is none yet.
    pub fn set(&self, value: T) {
        self.0.borrow_mut().get_or_insert(value);
        self.1.ring();
    }

    pub fn get(&self) -> Option<T> {
        self.0.borrow().clone()
    }

    pub async fn wait(&self) -> T {
        self.1.until(|| self.get()).await
    }
}

/// Wakes those who wait for something to change.
#[derive(Default)]
pub struct Bell {
    waiting: RefCell<BTreeMap<u64, Waker>>,
    last: Cell<u64>,
}

impl Bell {
    pub fn ring(&self) {
        self.waiting.take().into_values().for_each(Waker::wake);
    }

    /// Asks `question` now and after each ring, until it has an answer.
    pub async fn until<T>(&self, mut question: impl FnMut() -> Option<T>) -> T {
        self.last.set(self.last.get() + 1);
        let place = Place { bell: self, number: self.last.get() };
        poll_fn(|context| {
            if let Some(answer) = question() {
                return Poll::Ready(answer);
            }
            self.waiting.borrow_mut().insert(place.number, context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// One who waits. Gone with the wait, however that ends: a bell may never ring, and be waited for again and again.
struct Place<'a> {
    bell: &'a Bell,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.bell.waiting.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::super::{Either, race, readable, run, sleep, spawn, timeout};
    use super::*;

    #[test]
    fn a_latch_answers_all_who_wait_with_the_first_value() {
        let (latch, changed, sum) = (Rc::new(Latch::new()), Rc::new(Bell::default()), Rc::new(Cell::new(0)));
        let done = run(async move {
            for _ in 0..3 {
                let (latch, changed, sum) = (latch.clone(), changed.clone(), sum.clone());
                spawn(async move {
                    let value = latch.wait().await;
                    sum.set(sum.get() + value);
                    changed.ring();
                });
            }
            spawn({
                let latch = latch.clone();
                async move {
                    latch.set(7);
                    latch.set(8);
                }
            });
            changed.until(|| (sum.get() == 21).then_some(())).await;
            latch.wait().await
        });
        assert_eq!(done.unwrap(), 7);
    }

    #[test]
    fn who_gives_up_waiting_leaves_nothing_at_the_bell() {
        run(async {
            let latch = Latch::<()>::new();
            for _ in 0..3 {
                assert!(timeout(Duration::from_millis(1), latch.wait()).await.is_none());
            }
            assert!(latch.1.waiting.borrow().is_empty());
        })
        .unwrap();
    }

    #[test]
    fn a_pipe_a_time_and_a_race_are_waited_for() {
        run(async {
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            assert!(timeout(Duration::from_millis(1), readable(&reader)).await.is_none());
            spawn(async move {
                sleep(Duration::from_millis(1)).await;
                rustix::io::write(&writer, b"x").unwrap();
            });
            let Either::First(read) = race(readable(&reader), sleep(Duration::from_secs(60))).await else {
                panic!("the pipe was not seen");
            };
            read.unwrap();
        })
        .unwrap();
    }
}
