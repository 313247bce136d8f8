//! Output in the form of CRI logs, and those who follow it.

mod support;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, OFlags, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use tare_proto::containerd::task::v3 as pb;
use tare_proto::tare::shim::v1 as logs;
use tare_proto::ttrpc::blocking::Client;
use tare_proto::ttrpc::{Code, Error};

use support::{Pod, call, call_of, config, connect, fill_root, gone, options, shut_down};

fn log_call(client: &mut Client, method: &str, message: &impl prost::Message) -> Result<(), Error> {
    call_of("tare.shim.v1.Logs", client, method, message)
}

/// A shim, and containers whose output goes to `<name>.log`.
struct Served {
    pod: Pod,
    socket: PathBuf,
    client: Client,
}

impl Served {
    fn start() -> Served {
        let pod = Pod::new();
        let first = pod.id("first");
        pod.bundle(&first, &serde_json::json!({}));
        let socket = pod.start(&first);
        let client = connect(&socket);
        Served { pod, socket, client }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.pod.dir.path().join(format!("{name}.log"))
    }

    fn run(&mut self, name: &str, script: &str, terminal: bool) -> String {
        let id = self.pod.id(name);
        let mut config = config(script);
        config["process"]["terminal"] = terminal.into();
        if terminal {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.push(serde_json::json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}));
            mounts.push(serde_json::json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}));
        }
        let bundle = self.pod.bundle(&id, &config);
        fill_root(&bundle);
        let uri = format!("cri://{}", self.log(name).display());
        let create = pb::CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.display().to_string(),
            stdout: uri.clone(),
            stderr: if terminal { String::new() } else { uri },
            terminal,
            options: options(),
            ..Default::default()
        };
        call::<pb::CreateTaskResponse>(&mut self.client, "Create", &create).unwrap();
        let start = pb::StartRequest { id: id.clone(), ..Default::default() };
        call::<pb::StartResponse>(&mut self.client, "Start", &start).unwrap();
        id
    }

    fn wait(&mut self, id: &str) -> u32 {
        let wait = pb::WaitRequest { id: id.into(), ..Default::default() };
        call::<pb::WaitResponse>(&mut self.client, "Wait", &wait).unwrap().exit_status
    }

    fn delete(&mut self, id: &str) {
        let delete = pb::DeleteRequest { id: id.into(), ..Default::default() };
        call::<pb::DeleteResponse>(&mut self.client, "Delete", &delete).unwrap();
    }

    fn kill(&mut self, id: &str) {
        let kill = pb::KillRequest { id: id.into(), signal: 9, ..Default::default() };
        call::<()>(&mut self.client, "Kill", &kill).unwrap();
        assert_eq!(self.wait(id), 137);
    }

    fn reopen(&mut self, id: &str) -> Result<(), Error> {
        log_call(&mut self.client, "Reopen", &logs::ReopenRequest { id: id.into() })
    }

    /// Attaches a fifo to a container's output.
    fn attach(&mut self, id: &str, name: &str) -> File {
        let (path, reader) = fifo(self.pod.dir.path(), name);
        let request = logs::AttachRequest { id: id.into(), stdout: path, ..Default::default() };
        log_call(&mut self.client, "Attach", &request).unwrap();
        rustix::io::ioctl_fionbio(&reader, false).unwrap();
        reader
    }

    /// The process that writes the logs.
    fn writer(&self) -> u32 {
        let first = self.pod.id("first");
        let found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let mut words = line.split(|byte| *byte == 0);
            (words.any(|word| word == first.as_bytes()) && words.any(|word| word == b"write-logs")).then_some(pid)
        });
        found.expect("a process writes the logs")
    }

    fn end(self) {
        let writer = self.writer();
        shut_down(&self.socket);
        gone(writer);
    }
}

fn fifo(dir: &Path, name: &str) -> (String, File) {
    let path = dir.join(name);
    mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0).unwrap();
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let reader = File::options().read(true).custom_flags(flags).open(&path).unwrap();
    (path.display().to_string(), reader)
}

/// The records of a log, without their times.
fn records(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| {
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.len() == 30 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{line}");
            rest.to_owned()
        })
        .collect()
}

#[test]
fn all_output_is_in_the_log_when_the_container_is_deleted() {
    let mut served = Served::start();
    let id = served.run("both", "echo out; echo err >&2; head -c 20000 /dev/zero | tr '\\0' x; exit 3", false);
    assert_eq!(served.wait(&id), 3);
    served.delete(&id);
    let mut found = records(&served.log("both"));
    found.sort();
    let expected = [
        "stderr F err".to_owned(),
        "stdout F out".into(),
        format!("stdout P {}", "x".repeat(3616)),
        format!("stdout P {}", "x".repeat(16384)),
    ];
    assert_eq!(found, expected);
    let id = served.run("tty", "tty; echo shown", true);
    served.wait(&id);
    served.delete(&id);
    assert_eq!(records(&served.log("tty")), ["stdout F /dev/pts/0", "stdout F shown"]);
    served.end();
}

#[test]
fn a_terminal_has_the_size_that_the_client_says() {
    let mut served = Served::start();
    let script = "while [ \"$(stty size 2>/dev/null)\" != '33 77' ]; do :; done; echo resized";
    let id = served.run("sized", script, true);
    let resize = pb::ResizePtyRequest { id: id.clone(), width: 77, height: 33, ..Default::default() };
    call::<()>(&mut served.client, "ResizePty", &resize).unwrap();
    assert_eq!(served.wait(&id), 0);
    served.delete(&id);
    assert_eq!(records(&served.log("sized")), ["stdout F resized"]);
    let wide = pb::ResizePtyRequest { width: 70_000, ..resize };
    assert_eq!(call::<()>(&mut served.client, "ResizePty", &wide).unwrap_err().code, Code::NotFound as i32);
    served.end();
}

/// Output without an end of line is cut into records: neither the shim nor the writer keeps it.
#[test]
fn a_hundred_megabytes_without_a_line_s_end_cost_no_memory() {
    let mut served = Served::start();
    let id = served.pod.id("long");
    let bundle = served.pod.dir.path().join(&id);
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    mknodat(CWD, bundle.join("rootfs/gate"), FileType::Fifo, 0o600.into(), 0).unwrap();
    std::os::unix::fs::symlink("/dev/null", served.log("long")).unwrap();
    let id = served.run("long", "dd if=/dev/zero bs=1M count=100; read x < /gate", false);
    let writer = served.writer();
    let mut largest = 0;
    let mut gate = None;
    while gate.is_none() {
        let status = fs::read_to_string(format!("/proc/{writer}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        largest = largest.max(resident.trim().trim_end_matches(" kB").parse::<u32>().unwrap());
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        gate = File::options().write(true).custom_flags(flags).open(bundle.join("rootfs/gate")).ok();
    }
    std::io::Write::write_all(&mut gate.unwrap(), b"\n").unwrap();
    assert_eq!(served.wait(&id), 0);
    served.delete(&id);
    assert!(largest < 2000, "{largest} kB");
    served.end();
}

#[test]
fn a_log_that_is_rotated_under_load_loses_and_doubles_nothing() {
    let mut served = Served::start();
    let script = "i=0; while [ $i -lt 60000 ]; do echo $i; i=$((i+1)); done";
    let id = served.run("load", script, false);
    let log = served.log("load");
    let mut files = Vec::new();
    for number in 0..50 {
        let old = log.with_extension(number.to_string());
        fs::rename(&log, &old).unwrap();
        if served.reopen(&id).is_err() {
            assert!(number > 10, "it has ended after {number} rotations");
            fs::rename(&old, &log).unwrap();
            break;
        }
        assert!(log.exists(), "the new file is there when the call is answered");
        files.push(old);
    }
    assert_eq!(served.wait(&id), 0);
    served.delete(&id);
    files.push(log);
    let all: Vec<String> = files.iter().flat_map(|file| records(file)).collect();
    let expected: Vec<String> = (0..60000).map(|number| format!("stdout F {number}")).collect();
    assert!(all == expected, "{} records", all.len());
    served.end();
}

#[test]
fn who_attaches_reads_to_the_end_and_who_does_not_read_holds_up_nobody() {
    let mut served = Served::start();
    let (gate, _keep) = fifo(served.pod.dir.path(), "gate");
    let id = served.pod.id("live");
    let script =
        "read x < /gate; seq 100000 2>/dev/null || { i=0; while [ $i -lt 100000 ]; do echo $i; i=$((i+1)); done; }";
    let bundle = served.pod.dir.path().join(&id);
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    mknodat(CWD, bundle.join("rootfs/gate"), FileType::Fifo, 0o600.into(), 0).unwrap();
    let id = served.run("live", script, false);
    let stuck = served.attach(&id, "stuck");
    let left = served.attach(&id, "left");
    drop(left);
    let mut live = served.attach(&id, "live");
    let reader = std::thread::spawn(move || {
        let mut all = String::new();
        live.read_to_string(&mut all).unwrap();
        all
    });
    fs::write(bundle.join("rootfs/gate"), "\n").unwrap();
    assert_eq!(served.wait(&id), 0);
    let lines: Vec<String> = reader.join().unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 100_000);
    served.delete(&id);
    let logged: Vec<String> = records(&served.log("live"));
    assert!(logged.iter().map(|record| record.strip_prefix("stdout F ").unwrap()).eq(lines.iter().map(String::as_str)));
    drop((gate, stuck));
    served.end();
}

/// A fifo that nobody reads stands for a file system that hangs: it takes a pipe's worth, and then nothing.
#[test]
fn a_log_that_hangs_stalls_its_own_container_and_nothing_else() {
    let mut served = Served::start();
    let hung = served.log("hung");
    let (_, _reader) = fifo(served.pod.dir.path(), "hung.log");
    let _writer = File::options().write(true).open(&hung).unwrap();
    let id = served.run("hung", "while :; do echo a line of output that fills the pipe before long; done", false);
    let other = served.run("other", "echo fine; exit 4", false);
    assert_eq!(served.wait(&other), 4);
    served.delete(&other);
    assert_eq!(records(&served.log("other")), ["stdout F fine"]);
    let spec = serde_json::json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/sh", "-c", "exit 5"]});
    let exec = pb::ExecProcessRequest {
        id: id.clone(),
        exec_id: "e".into(),
        spec: Some(prost_types::Any { type_url: "process".into(), value: spec.to_string().into_bytes() }),
        ..Default::default()
    };
    call::<()>(&mut served.client, "Exec", &exec).unwrap();
    let of = |exec_id: &str| (id.clone(), exec_id.to_owned());
    let (id_, exec_id) = of("e");
    call::<pb::StartResponse>(&mut served.client, "Start", &pb::StartRequest { id: id_, exec_id }).unwrap();
    let (id_, exec_id) = of("e");
    let ended: pb::WaitResponse = call(&mut served.client, "Wait", &pb::WaitRequest { id: id_, exec_id }).unwrap();
    assert_eq!(ended.exit_status, 5);
    served.kill(&id);
    // The file system is well again: what was held up comes through.
    let mut reader = File::options().read(true).open(&hung).unwrap();
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    served.delete(&id);
    served.end();
}

#[test]
fn a_writer_that_is_killed_is_replaced_and_the_container_does_not_notice() {
    let mut served = Served::start();
    let id = served.pod.id("on");
    let bundle = served.pod.dir.path().join(&id);
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    mknodat(CWD, bundle.join("rootfs/gate"), FileType::Fifo, 0o600.into(), 0).unwrap();
    let id = served.run("on", "echo one; read x < /gate; echo two; exit 6", false);
    while fs::read_to_string(served.log("on")).unwrap().is_empty() {}
    let writer = served.writer();
    kill_process(Pid::from_raw(writer.cast_signed()).unwrap(), Signal::KILL).unwrap();
    gone(writer);
    fs::write(bundle.join("rootfs/gate"), "\n").unwrap();
    assert_eq!(served.wait(&id), 6);
    served.delete(&id);
    assert_eq!(records(&served.log("on")), ["stdout F one", "stdout F two"]);
    served.end();
}

#[test]
fn what_has_no_log_is_refused_by_name() {
    let mut served = Served::start();
    let error = served.reopen("nobody").unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::NotFound as i32, "container not created: nobody: not found")
    );
    let id = served.pod.id("bad");
    let bundle = served.pod.bundle(&id, &config("exit 0"));
    fill_root(&bundle);
    let mut create = pb::CreateTaskRequest {
        id,
        bundle: bundle.display().to_string(),
        stdout: "cri:///nonexistent/dir/0.log".into(),
        options: options(),
        ..Default::default()
    };
    let error = call::<pb::CreateTaskResponse>(&mut served.client, "Create", &create).unwrap_err();
    assert_eq!(error.message, "opening the log /nonexistent/dir/0.log: no such file or directory");
    create.stdout = "cri://relative".into();
    let error = call::<pb::CreateTaskResponse>(&mut served.client, "Create", &create).unwrap_err();
    assert_eq!(error.message, "cri://relative: the path of the log is not absolute");
    served.end();
}

/// What the writer costs, and how fast it is, is printed for whoever asks.
#[test]
fn the_writer_is_small_and_leaves_nothing_open() {
    let mut served = Served::start();
    let ids: Vec<String> =
        (0..10).map(|number| served.run(&format!("c{number}"), "echo hello; sleep 1000", false)).collect();
    for number in 0..10 {
        while fs::read_to_string(served.log(&format!("c{number}"))).unwrap().is_empty() {}
    }
    let writer = served.writer();
    let open = || fs::read_dir(format!("/proc/{writer}/fd")).unwrap().count();
    assert!(open() > 10);
    for id in &ids {
        served.kill(id);
        served.delete(id);
    }
    assert!(open() <= 5, "{}", open());
    let out = Command::new("ls").args(["-l", &format!("/proc/{writer}/fd")]).output().unwrap();
    assert!(!String::from_utf8_lossy(&out.stdout).contains("pipe:"), "{out:?}");
    served.end();
}
