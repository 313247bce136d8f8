//! Shims alone, spoken to over their own sockets: what one costs for as long as it lives, and what each call takes.
//!
//! Both shims drive `tare`, so that what differs is theirs. A containerd takes their events and does nothing else.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use prost::Message;
use serde_json::json;
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::programs;
use tare_proto::any;
use tare_proto::containerd::runc::v1::Options;
use tare_proto::containerd::task::v3 as pb;
use tare_proto::ttrpc::blocking::Client;

use super::report::Report;
use super::rounds::Sample;
use crate::sh;

const NAMESPACE: &str = "tare-bench";
const PATIENCE: Duration = Duration::from_secs(60);
/// What a container writes for the row of throughput: 1024 times 1 MiB.
const OUTPUT: u64 = 1 << 30;

/// # Errors
/// A shim did not start, or refused a call.
pub fn rows(rounds: usize, report: &mut Report) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("tare-bench.").tempdir()?;
    let place = Place::make(dir.path())?;
    let _daemon = Daemon::start(Kind::Containerd("newer"), dir.path())?;
    let (mut starts, mut execs) = (Vec::new(), Vec::new());
    for (name, program) in [
        ("tare's shim", programs::tare("containerd-shim-tare-v2")?),
        ("containerd's runc shim", programs::peer("newer", "containerd-shim-runc-v2")?),
    ] {
        let make = |id: &str| Shim::start(&place, &program, &format!("{}-{id}", &name[..4]));
        starts.push(start_latency(name, rounds, &make)?);
        let (exec, facts) = one_pod(name, rounds.max(1000), &make)?;
        execs.push(exec);
        for (what, value) in facts {
            report.fact(&format!("{name}, {what}"), value);
        }
        report.fact(&format!("{name}, stdout of 1 GiB through a fifo"), throughput(make("out")?)?);
        report.fact(&format!("{name}, a hundred shims with a container each"), hundred(&make)?);
    }
    report.row("start of a shim, until its socket is served", &starts, &[]);
    report.row("exec of true: Exec, Start, Wait, Delete", &execs, &[]);
    Ok(())
}

/// One shim that containers and execs come and go in: what it holds at the end is what it held after the first tenth.
///
/// # Errors
/// A call failed, or the shim has grown.
pub fn soak(length: Duration, report: &mut Report) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("tare-bench.").tempdir()?;
    let place = Place::make(dir.path())?;
    let _daemon = Daemon::start(Kind::Containerd("newer"), dir.path())?;
    let mut shim = Shim::start(&place, &programs::tare("containerd-shim-tare-v2")?, "soak")?;
    let first = shim.pod.clone();
    shim.run(&first, "exec sleep 100000", "")?;
    let held = |shim: &Shim<'_>| -> Result<(u64, usize, u64)> {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", shim.pid))?.count();
        Ok((shim.number("status", "VmRSS:")?, descriptors, shim.number("status", "Threads:")?))
    };
    let begin = Instant::now();
    let (mut count, mut early) = (0u64, None);
    while begin.elapsed() < length {
        let id = format!("{first}-{count}");
        shim.run(&id, "exec sleep 100000", "")?;
        for _ in 0..5 {
            shim.exec()?;
        }
        shim.containers.pop();
        shim.kill_and_delete(&id)?;
        count += 1;
        if early.is_none() && begin.elapsed() > length / 10 {
            early = Some(held(&shim)?);
        }
    }
    let (early, late) = (early.context("the soak was too short for one container")?, held(&shim)?);
    let value = json!({"containers": count, "execs": 5 * count, "rss_kib": [early.0, late.0],
        "descriptors": [early.1, late.1], "threads": [early.2, late.2]});
    report.fact(&format!("soak of {} s, after a tenth and at the end", length.as_secs()), value);
    shim.end()?;
    ensure!(late.0 <= early.0 + 256, "resident memory has grown from {} to {} KiB", early.0, late.0);
    ensure!((late.1, late.2) == (early.1, early.2), "descriptors or threads are left behind");
    Ok(())
}

/// Bundles on one root folder with busybox in it.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn make(dir: &Path) -> Result<Place> {
        let place = Place { dir: dir.to_owned() };
        for folder in ["bin", "proc", "dev"] {
            fs::create_dir_all(dir.join("rootfs").join(folder))?;
        }
        fs::copy(programs::peer("bookworm", "busybox")?, dir.join("rootfs/bin/busybox"))?;
        for applet in ["sh", "sleep", "true", "dd"] {
            std::os::unix::fs::symlink("busybox", dir.join("rootfs/bin").join(applet))?;
        }
        Ok(place)
    }

    fn bundle(&self, id: &str, pod: &str, command: &str) -> Result<PathBuf> {
        let bundle = self.dir.join("bundles").join(id);
        fs::create_dir_all(&bundle)?;
        let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({"type": kind}));
        let config = json!({
            "ociVersion": "1.1.0",
            "root": {"path": self.dir.join("rootfs")},
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/sh", "-c", command], "env": ["PATH=/bin"]},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "annotations": {"io.kubernetes.cri.sandbox-id": pod},
            "linux": {"namespaces": namespaces},
        });
        fs::write(bundle.join("config.json"), config.to_string())?;
        Ok(bundle)
    }
}

/// A shim that serves a pod, and a connection to it.
struct Shim<'a> {
    place: &'a Place,
    pod: String,
    client: Client,
    pid: u32,
    started: Duration,
    containers: Vec<String>,
}

impl<'a> Shim<'a> {
    fn start(place: &'a Place, program: &Path, pod: &str) -> Result<Shim<'a>> {
        let bundle = place.bundle(pod, pod, "exec sleep 100000")?;
        let log = bundle.join("log");
        fifo(&log)?;
        let _reader = File::options().read(true).write(true).open(&log)?; // as the daemon has it
        let mut command = Command::new(program);
        command.args(["-namespace", NAMESPACE, "-id", pod, "-address"]).arg(place.dir.join("d.sock"));
        command.arg("-publish-binary").arg(programs::peer("newer", "containerd")?).arg("start");
        command.env("TTRPC_ADDRESS", place.dir.join("d.sock.ttrpc")).current_dir(&bundle).stdin(Stdio::null());
        let begin = Instant::now();
        let said = sh::output(&mut command)?;
        let address = match serde_json::from_str::<serde_json::Value>(&said) {
            Ok(answer) => answer["address"].as_str().unwrap_or_default().to_owned(),
            Err(_) => said,
        };
        let socket = address.trim().strip_prefix("unix://").context("the shim's address")?.to_owned();
        let mut client = Client::connect(Path::new(&socket), PATIENCE)?;
        let started = begin.elapsed();
        let there: pb::ConnectResponse = call(&mut client, "Connect", &pb::ConnectRequest { id: pod.into() })?;
        Ok(Shim { place, pod: pod.into(), client, pid: there.shim_pid, started, containers: Vec::new() })
    }

    fn run(&mut self, id: &str, command: &str, stdout: &str) -> Result<()> {
        let bundle = self.place.bundle(id, &self.pod, command)?;
        let options = Options { binary_name: programs::tare("tare")?.display().to_string(), ..Options::default() };
        let create = pb::CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            stdout: stdout.into(),
            stderr: stdout.into(), // containerd's own opens both
            options: Some(any::pack("containerd.runc.v1.Options", &options)),
            ..pb::CreateTaskRequest::default()
        };
        call::<pb::CreateTaskResponse>(&mut self.client, "Create", &create)?;
        self.containers.push(id.into());
        let start = pb::StartRequest { id: id.into(), exec_id: String::new() };
        call::<pb::StartResponse>(&mut self.client, "Start", &start).map(drop)
    }

    fn exec(&mut self) -> Result<Duration> {
        let (id, exec_id) = (self.pod.clone(), "e".to_owned());
        let spec = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/true"], "env": ["PATH=/bin"]});
        let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
        let spec = Some(prost_types::Any { type_url, value: spec.to_string().into_bytes() });
        let begin = Instant::now();
        let exec = pb::ExecProcessRequest { id: id.clone(), exec_id: exec_id.clone(), spec, ..Default::default() };
        call::<()>(&mut self.client, "Exec", &exec)?;
        let start = pb::StartRequest { id: id.clone(), exec_id: exec_id.clone() };
        call::<pb::StartResponse>(&mut self.client, "Start", &start)?;
        let wait = pb::WaitRequest { id: id.clone(), exec_id: exec_id.clone() };
        let ended: pb::WaitResponse = call(&mut self.client, "Wait", &wait)?;
        call::<pb::DeleteResponse>(&mut self.client, "Delete", &pb::DeleteRequest { id, exec_id })?;
        ensure!(ended.exit_status == 0, "true ended with {}", ended.exit_status);
        Ok(begin.elapsed())
    }

    fn kill_and_delete(&mut self, id: &str) -> Result<()> {
        let kill = pb::KillRequest { id: id.into(), signal: 9, ..pb::KillRequest::default() };
        let _ = call::<()>(&mut self.client, "Kill", &kill); // it may have ended by itself
        let (id, exec_id) = (id.to_owned(), String::new());
        let wait = pb::WaitRequest { id: id.clone(), exec_id: exec_id.clone() };
        call::<pb::WaitResponse>(&mut self.client, "Wait", &wait)?;
        call::<pb::DeleteResponse>(&mut self.client, "Delete", &pb::DeleteRequest { id, exec_id }).map(drop)
    }

    /// Ends all containers and the shim.
    fn end(mut self) -> Result<()> {
        for id in std::mem::take(&mut self.containers) {
            self.kill_and_delete(&id)?;
        }
        let shutdown = pb::ShutdownRequest { id: self.pod.clone(), now: false };
        let _ = call::<()>(&mut self.client, "Shutdown", &shutdown); // some end before they have answered
        Ok(())
    }

    /// A number of one of its files below /proc.
    fn number(&self, file: &str, name: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.pid))?;
        let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("{name} in {file}"))?;
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).with_context(|| format!("{name}: a number"))
    }

    fn memory(&self) -> Result<serde_json::Value> {
        Ok(json!({
            "rss_kib": self.number("status", "VmRSS:")?,
            "pss_kib": self.number("smaps_rollup", "Pss:")?,
            "threads": self.number("status", "Threads:")?,
        }))
    }

    /// Processor time so far, in milliseconds: proc_pid_stat(5) counts in hundredths.
    fn processor_time(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        Ok((ticks(11) + ticks(12)) * 10)
    }
}

fn call<R: Message + Default>(client: &mut Client, method: &str, message: &impl Message) -> Result<R> {
    // containerd's own shim answers version 3 from 2.0 on, ours both.
    let answer = client.call("containerd.task.v3.Task", method, message.encode_to_vec(), NAMESPACE);
    Ok(R::decode(answer.with_context(|| format!("calling {method}"))?.as_slice())?)
}

fn start_latency<'a>(name: &str, rounds: usize, make: &dyn Fn(&str) -> Result<Shim<'a>>) -> Result<Sample> {
    let mut micros = Vec::new();
    for round in 0..rounds {
        let shim = make(&format!("s{round}"))?;
        micros.push(shim.started.as_secs_f64() * 1e6);
        shim.end()?;
    }
    Ok(Sample { name: name.to_owned(), micros, max_rss: 0 })
}

type Facts = Vec<(&'static str, serde_json::Value)>;

/// A pod that grows to fifty containers, and a thousand execs on the way.
fn one_pod<'a>(name: &str, execs: usize, make: &dyn Fn(&str) -> Result<Shim<'a>>) -> Result<(Sample, Facts)> {
    let mut shim = make("pod")?;
    let first = shim.pod.clone();
    shim.run(&first, "exec sleep 100000", "")?;
    let mut facts = Facts::new();
    let mut micros = vec![shim.exec()?.as_secs_f64() * 1e6];
    facts.push(("one container, after one exec", shim.memory()?));
    for _ in 1..execs {
        micros.push(shim.exec()?.as_secs_f64() * 1e6);
    }
    facts.push(("one container, after a thousand execs", shim.memory()?));
    for number in 1..50 {
        shim.run(&format!("{first}-{number}"), "exec sleep 100000", "")?;
        if number == 9 {
            facts.push(("a pod of ten containers", shim.memory()?));
        }
    }
    facts.push(("a pod of fifty containers", shim.memory()?));
    shim.end()?;
    Ok((Sample { name: name.to_owned(), micros, max_rss: 0 }, facts))
}

fn throughput(mut shim: Shim<'_>) -> Result<serde_json::Value> {
    let path = shim.place.dir.join(format!("{}.out", shim.pod));
    fifo(&path)?;
    let reading = path.clone();
    let reader = std::thread::spawn(move || -> Result<u64> {
        let (mut fifo, mut buffer, mut total) = (File::open(reading)?, vec![0; 1 << 20], 0);
        while total < OUTPUT {
            total += fifo.read(&mut buffer)? as u64;
        }
        Ok(total)
    });
    let before = shim.processor_time()?;
    let id = shim.pod.clone();
    let begin = Instant::now();
    shim.run(&id, "dd if=/dev/zero bs=1M count=1024; exec sleep 100000", &path.display().to_string())?;
    let total = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    let took = begin.elapsed();
    let spent = shim.processor_time()? - before;
    shim.end()?;
    Ok(json!({"gb_per_s": total as f64 / 1e9 / took.as_secs_f64(), "shim_cpu_ms": spent}))
}

fn hundred<'a>(make: &dyn Fn(&str) -> Result<Shim<'a>>) -> Result<serde_json::Value> {
    let mut shims = Vec::new();
    for number in 0..100 {
        let mut shim = make(&format!("h{number}"))?;
        let id = shim.pod.clone();
        shim.run(&id, "exec sleep 100000", "")?;
        shims.push(shim);
    }
    let mut pss = 0;
    for shim in &shims {
        pss += shim.number("smaps_rollup", "Pss:")?;
    }
    for shim in shims {
        shim.end()?;
    }
    Ok(json!({"pss_kib": pss}))
}

fn fifo(path: &Path) -> Result<()> {
    sh::run(Command::new("mkfifo").args(["-m", "600"]).arg(path))
}
