//! One thread, many futures: what waits for a descriptor, a time or each other is written as straight code and polled
//! here, over one epoll. No pool, no locks, nothing allocated but the futures themselves.
//!
//! Futures run until they wait; no borrow of shared state may be held across an `.await`.

mod latch;
mod ready;
mod timer;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Instant;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

pub use latch::{Bell, Latch};
pub use ready::{exceptional, readable, writable, write_all};
pub use timer::{Either, race, sleep, timeout};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The loop's state; there is one for each thread that runs one.
struct Loop {
    epoll: OwnedFd,
    /// Those who wait to write, in an epoll of their own below the other: each takes a descriptor once, and a socket or a
    /// terminal is waited for in both directions.
    writing: OwnedFd,
    tasks: RefCell<HashMap<u64, Task>>,
    /// Who waits for a descriptor, by the token that epoll returns.
    watched: RefCell<HashMap<u64, Waker>>,
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    last: Cell<u64>,
}

thread_local! {
    static LOOP: RefCell<Option<Rc<Loop>>> = const { RefCell::new(None) };
    /// Futures to poll. Apart from the loop, since a waker knows nothing but its number.
    static READY: RefCell<VecDeque<u64>> = const { RefCell::new(VecDeque::new()) };
}

struct Number(u64);

impl Wake for Number {
    fn wake(self: Arc<Self>) {
        READY.with_borrow_mut(|ready| {
            if !ready.contains(&self.0) {
                ready.push_back(self.0);
            }
        });
    }
}

fn current() -> Rc<Loop> {
    LOOP.with_borrow(|current| current.clone().expect("futures of this loop are polled by it only"))
}

impl Loop {
    fn number(&self) -> u64 {
        self.last.set(self.last.get() + 1);
        self.last.get()
    }

    fn poll(&self, number: u64) {
        let Some(mut task) = self.tasks.borrow_mut().remove(&number) else { return };
        let waker = Waker::from(Arc::new(Number(number)));
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.tasks.borrow_mut().insert(number, task);
        }
    }

    /// Waits for the next descriptor or time, and marks who waited for it.
    fn wait(&self) -> Result<(), Errno> {
        let next = self.timers.borrow().first_key_value().map(|((time, _), _)| *time);
        let limit = next.map(|time| time.saturating_duration_since(Instant::now()));
        let limit = limit
            .map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) });
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 32];
        let (events, _) = match epoll::wait(&self.epoll, &mut events, limit.as_ref()) {
            Err(Errno::INTR) => return Ok(()),
            other => other?,
        };
        events.iter().map(|event| event.data.u64()).for_each(|token| self.wake(token));
        let now = Instant::now();
        while let Some(first) = self.timers.borrow_mut().first_entry().filter(|first| first.key().0 <= now) {
            first.remove().wake();
        }
        Ok(())
    }

    fn wake(&self, token: u64) {
        if token == WRITING {
            let mut events = [MaybeUninit::<epoll::Event>::uninit(); 32];
            let ready = epoll::wait(&self.writing, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
            // What is left is still there the next time.
            let tokens = ready.map_or(&[][..], |(events, _)| events).iter().map(|event| event.data.u64());
            tokens.for_each(|token| self.wake(token));
            return;
        }
        let waker = self.watched.borrow_mut().remove(&token);
        waker.inspect(Waker::wake_by_ref);
    }
}

/// The token of the inner epoll; all others are numbers from 1 on.
const WRITING: u64 = 0;

/// Runs `future`, and all that it spawns, until it ends.
///
/// # Errors
/// epoll could not be made or waited for.
pub fn run<T: 'static>(future: impl Future<Output = T> + 'static) -> Result<T, Errno> {
    let create = || epoll::create(epoll::CreateFlags::CLOEXEC);
    let (epoll, writing) = (create()?, create()?);
    epoll::add(&epoll, &writing, epoll::EventData::new_u64(WRITING), epoll::EventFlags::IN)?;
    let this = Rc::new(Loop {
        epoll,
        writing,
        tasks: RefCell::default(),
        watched: RefCell::default(),
        timers: RefCell::default(),
        last: Cell::new(0),
    });
    LOOP.set(Some(this.clone()));
    let result = Rc::new(RefCell::new(None));
    let slot = result.clone();
    spawn(async move {
        let value = future.await;
        *slot.borrow_mut() = Some(value);
    });
    loop {
        while let Some(number) = READY.with_borrow_mut(VecDeque::pop_front) {
            this.poll(number);
            if let Some(value) = result.borrow_mut().take() {
                return Ok(value);
            }
        }
        this.wait()?;
    }
}

/// Starts a future beside the others.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    let this = current();
    let number = this.number();
    this.tasks.borrow_mut().insert(number, Box::pin(future));
    READY.with_borrow_mut(|ready| ready.push_back(number));
}
