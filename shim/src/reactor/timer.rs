//! Waiting for a time, and for the first of two things.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::current;

/// Returns after `duration`.
pub async fn sleep(duration: Duration) {
    Sleep { until: Instant::now() + duration, number: None }.await;
}

struct Sleep {
    until: Instant,
    number: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.until {
            return Poll::Ready(());
        }
        let this = current();
        let number = *self.number.get_or_insert_with(|| this.number());
        this.timers.borrow_mut().insert((self.until, number), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            current().timers.borrow_mut().remove(&(self.until, number));
        }
    }
}

pub enum Either<A, B> {
    First(A),
    Second(B),
}

/// The first of two that ends; the other is dropped. If both have, the first counts.
pub async fn race<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> Either<A, B> {
    let mut first = pin!(first);
    let mut second = pin!(second);
    poll_fn(|context| {
        if let Poll::Ready(value) = first.as_mut().poll(context) {
            return Poll::Ready(Either::First(value));
        }
        second.as_mut().poll(context).map(Either::Second)
    })
    .await
}

/// What `future` ends with, or nothing if that takes longer than `limit`.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    match race(future, sleep(limit)).await {
        Either::First(value) => Some(value),
        Either::Second(()) => None,
    }
}
