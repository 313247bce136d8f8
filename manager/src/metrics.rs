//! What the daemon counts, in Prometheus' text format. Names are those of containerd where it counts the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tonic::Code;
use tonic::codegen::http;

/// Upper bounds in seconds, as Prometheus' own defaults with a finer begin.
const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Clones share the counts.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    /// By service and method.
    calls: BTreeMap<(String, String), Call>,
    collections: Histogram,
    /// What the collector removed, by kind.
    collected: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct Call {
    codes: BTreeMap<&'static str, u64>,
    times: Histogram,
}

#[derive(Default)]
struct Histogram {
    /// How many took no longer than each bound, and longer than the one before.
    counts: [u64; BOUNDS.len()],
    all: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        if let Some(place) = BOUNDS.iter().position(|bound| took <= *bound) {
            self.counts[place] += 1;
        }
        self.all += 1;
        self.sum += took;
    }

    fn show(&self, text: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bound, count) in BOUNDS.iter().zip(self.counts) {
            below += count;
            line(text, &format!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}}"), below);
        }
        line(text, &format!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}}"), self.all);
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        line(text, &format!("{name}_sum{labels}"), self.sum);
        line(text, &format!("{name}_count{labels}"), self.all);
    }
}

impl Metrics {
    /// A collection came to its end, and removed so many rows of each kind.
    pub fn collected(&self, took: Duration, removed: impl IntoIterator<Item = (&'static str, usize)>) {
        let mut counts = self.lock();
        counts.collections.add(took);
        for (kind, number) in removed {
            *counts.collected.entry(kind).or_default() += number as u64;
        }
    }

    fn called(&self, path: &str, code: Code, took: Duration) {
        // A path that nobody serves is the caller's word, and there may be any number of those.
        let (service, method) = match path.trim_start_matches('/').split_once('/') {
            Some(names) if code != Code::Unimplemented => names,
            _ => ("unknown", "unknown"),
        };
        let mut counts = self.lock();
        let call = counts.calls.entry((service.to_owned(), method.to_owned())).or_default();
        *call.codes.entry(name(code)).or_default() += 1;
        call.times.add(took);
    }

    /// All of it as text.
    pub fn show(&self) -> String {
        let mut text = String::new();
        head(&mut text, "containerd_build_info_total", "counter", "containerd build version and git revision");
        let build = format!("version=\"{}\",revision=\"{}\"", crate::VERSION, crate::REVISION);
        line(&mut text, &format!("containerd_build_info_total{{{build}}}"), 1);
        {
            let counts = self.lock();
            head(&mut text, "grpc_server_handled_total", "counter", "Calls that were answered, by code");
            for ((service, method), call) in &counts.calls {
                for (code, number) in &call.codes {
                    let labels = format!("grpc_code=\"{code}\",grpc_method=\"{method}\",grpc_service=\"{service}\"");
                    line(&mut text, &format!("grpc_server_handled_total{{{labels}}}"), *number);
                }
            }
            head(&mut text, "grpc_server_handling_seconds", "histogram", "From a call to the begin of its answer");
            for ((service, method), call) in &counts.calls {
                let labels = format!("grpc_method=\"{method}\",grpc_service=\"{service}\"");
                call.times.show(&mut text, "grpc_server_handling_seconds", &labels);
            }
            head(&mut text, "tared_gc_seconds", "histogram", "Collections of what nothing refers to");
            counts.collections.show(&mut text, "tared_gc_seconds", "");
            head(&mut text, "tared_gc_removed_total", "counter", "Rows that the collector removed");
            for (kind, number) in &counts.collected {
                line(&mut text, &format!("tared_gc_removed_total{{kind=\"{kind}\"}}"), *number);
            }
        }
        process(&mut text);
        text
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}"); // a String takes everything
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "{name} {value}");
}

/// Memory and files of this process. Source: proc_pid_status(5), proc_pid_fd(5).
fn process(text: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = |line: &str| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
    if let Some(kib) = status.lines().find_map(resident) {
        head(text, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
        line(text, "process_resident_memory_bytes", kib * 1024);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        head(text, "process_open_fds", "gauge", "Number of open file descriptors.");
        line(text, "process_open_fds", files.count());
    }
}

/// As Go's gRPC writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// Counts the calls of the services below. An error that comes after the begin of an answer is not seen: it is the
/// stream's, whose time says nothing of the daemon's.
impl<S> tower::Layer<S> for Metrics {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, metrics: self.clone() }
    }
}

#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B, R> tower::Service<http::Request<B>> for Counted<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (metrics, path, began) = (self.metrics.clone(), request.uri().path().to_owned(), Instant::now());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let status = answer.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
            metrics.called(&path, status, began.elapsed());
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_code_and_time_and_nonsense_makes_no_rows() {
        let metrics = Metrics::default();
        metrics.called("/a.B/C", Code::Ok, Duration::from_millis(3));
        metrics.called("/a.B/C", Code::NotFound, Duration::from_secs(20));
        for nonsense in 0..100 {
            metrics.called(&format!("/x.{nonsense}/Y"), Code::Unimplemented, Duration::ZERO);
        }
        metrics.collected(Duration::from_millis(1), [("images", 2)]);
        let text = metrics.show();
        for expected in [
            "grpc_server_handled_total{grpc_code=\"NotFound\",grpc_method=\"C\",grpc_service=\"a.B\"} 1",
            "grpc_server_handled_total{grpc_code=\"Unimplemented\",grpc_method=\"unknown\",grpc_service=\"unknown\"} 100",
            "grpc_server_handling_seconds_bucket{grpc_method=\"C\",grpc_service=\"a.B\",le=\"0.0025\"} 0",
            "grpc_server_handling_seconds_bucket{grpc_method=\"C\",grpc_service=\"a.B\",le=\"0.005\"} 1",
            "grpc_server_handling_seconds_bucket{grpc_method=\"C\",grpc_service=\"a.B\",le=\"+Inf\"} 2",
            "grpc_server_handling_seconds_count{grpc_method=\"C\",grpc_service=\"a.B\"} 2",
            "tared_gc_removed_total{kind=\"images\"} 2",
            "tared_gc_seconds_count 1",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected}\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes "));
    }
}
