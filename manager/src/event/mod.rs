//! Events: published by services and forwarded by shims, each naming its namespace; seen by whoever subscribed before.
//!
//! There is no replay. An event is containerd's own envelope (timestamp, namespace, topic, payload), since it comes in
//! and leaves as one and nothing here looks into it but filters ([`fields`]).

mod exchange;
mod fields;
pub mod forward;

pub use exchange::{Exchange, Subscription};
