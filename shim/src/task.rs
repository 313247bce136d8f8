//! The Task service: each method a short function over the table of processes.
//!
//! Both versions are one: their messages are the same, only the package's name differs.
//!
//! Source: containerd api/runtime/task/v3/shim.proto; the errors are those that containerd's own shim gives.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio as Given;

use prost::Message;
use prost_types::Any;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::termios::{Winsize, tcsetwinsize};
use tare_proto::any;
use tare_proto::containerd::events as event;
use tare_proto::containerd::runc::v1::ProcessDetails;
use tare_proto::containerd::task::v3 as pb;
use tare_proto::containerd::v1::types::{ProcessInfo, Status};
use tare_proto::ttrpc::{Code, Error};
use tare_proto::wire::Request;

use crate::connection::Reply;
use crate::process::{Event, Exit, Phase, Process, Tell};
use crate::runtime::Runtime;
use crate::serve::Shim;
use crate::stdio::Stdio;
use crate::{metrics, mounts, options, sys};

/// A container and its processes.
pub struct Task {
    bundle: PathBuf,
    runtime: Runtime,
    init: Process,
    execs: BTreeMap<String, Process>,
}

impl Task {
    /// All processes; the first one has no exec id.
    pub fn processes(&self) -> impl Iterator<Item = (&str, &Process)> {
        std::iter::once(("", &self.init)).chain(self.execs.iter().map(|(id, process)| (id.as_str(), process)))
    }

    pub fn process_mut(&mut self, exec: &str) -> Option<&mut Process> {
        if exec.is_empty() { Some(&mut self.init) } else { self.execs.get_mut(exec) }
    }
}

type Answer = Result<Option<Vec<u8>>, Error>;

fn error(code: Code, text: impl Into<String>) -> Error {
    Error::new(code, text)
}

fn failed(text: impl std::fmt::Display) -> Error {
    Error::new(Code::Unknown, text.to_string())
}

fn done(message: &impl Message) -> Answer {
    Ok(Some(message.encode_to_vec()))
}

fn read<M: Message + Default>(payload: &[u8]) -> Result<M, Error> {
    M::decode(payload).map_err(|error| Error::new(Code::InvalidArgument, format!("reading the request: {error}")))
}

impl Shim {
    /// Does what a request asks for; the answer goes out now, or when a command of the runtime has ended.
    pub fn call(&mut self, reply: Reply, data: &[u8]) {
        let answer = match Request::decode(data) {
            Ok(request) => self.dispatch(reply, &request),
            Err(error) => Err(Error::new(Code::InvalidArgument, format!("reading a request: {error}"))),
        };
        match answer {
            Ok(Some(payload)) => self.reply(reply, Ok(payload)),
            Ok(None) => {} // later
            Err(error) => self.reply(reply, Err(error)),
        }
    }

    fn dispatch(&mut self, reply: Reply, request: &Request) -> Answer {
        if !matches!(request.service.as_str(), "containerd.task.v2.Task" | "containerd.task.v3.Task") {
            return Err(error(Code::Unimplemented, format!("service {}", request.service)));
        }
        let payload = request.payload.as_slice();
        match request.method.as_str() {
            "Create" => self.create(reply, read(payload)?),
            "Start" => self.start(reply, &read(payload)?),
            "State" => self.state(read(payload)?),
            "Kill" => self.kill(reply, &read(payload)?),
            "Wait" => self.wait_for(reply, &read(payload)?),
            "Exec" => self.exec(read(payload)?),
            "Delete" => self.delete(reply, &read(payload)?),
            "Pids" => self.pids(&read(payload)?),
            "Pause" => self.pause(reply, &read::<pb::PauseRequest>(payload)?.id, true),
            "Resume" => self.pause(reply, &read::<pb::ResumeRequest>(payload)?.id, false),
            "CloseIO" => self.close_io(&read(payload)?),
            "ResizePty" => self.resize(&read(payload)?),
            "Update" => self.update(reply, read(payload)?),
            "Stats" => self.stats(&read(payload)?),
            "Connect" => self.connect(&read(payload)?),
            "Shutdown" => self.shutdown(),
            "Checkpoint" => Err(error(Code::Unimplemented, "checkpoints are not supported yet")),
            method => Err(error(Code::Unimplemented, format!("method {method}"))),
        }
    }

    fn task(&mut self, id: &str) -> Result<&mut Task, Error> {
        self.tasks.get_mut(id).ok_or_else(|| error(Code::NotFound, format!("container not created: {id}: not found")))
    }

    fn process(&mut self, id: &str, exec: &str) -> Result<&mut Process, Error> {
        let missing = || error(Code::NotFound, format!("process {exec} of {id}: not found"));
        self.task(id)?.process_mut(exec).ok_or_else(missing)
    }

    fn create(&mut self, reply: Reply, request: pb::CreateTaskRequest) -> Answer {
        let id = request.id.clone();
        if self.tasks.contains_key(&id) {
            return Err(error(Code::AlreadyExists, format!("container {id}: already exists")));
        }
        if !request.checkpoint.is_empty() {
            return Err(error(Code::Unimplemented, "checkpoints are not supported yet"));
        }
        let options =
            options::read(request.options.as_ref()).map_err(|e| error(Code::InvalidArgument, e.to_string()))?;
        let bundle = PathBuf::from(&request.bundle);
        let runtime = Runtime::new(&options, &self.namespace);
        runtime.keep(&bundle).map_err(|e| failed(format!("writing to the bundle {}: {e}", bundle.display())))?;
        let rootfs = bundle.join("rootfs");
        if !request.rootfs.is_empty() {
            fs::create_dir_all(&rootfs).map_err(|e| failed(format!("making {}: {e}", rootfs.display())))?;
        }
        mounts::mount_all(&request.rootfs, &rootfs).map_err(failed)?;
        let stdio = Stdio::new(request.stdin.clone(), request.stdout.clone(), request.stderr.clone(), request.terminal);
        let task = Task { bundle, runtime, init: Process::new(stdio, Vec::new()), execs: BTreeMap::new() };
        self.tasks.insert(id.clone(), task);
        if let Err(error) = self.run_create(reply, request) {
            self.forget(&id)?;
            return Err(error);
        }
        Ok(None)
    }

    fn run_create(&mut self, reply: Reply, request: pb::CreateTaskRequest) -> Result<(), Error> {
        let id = request.id.clone();
        let namespace = self.namespace.clone();
        let console = if request.terminal { Some(self.console(&id, "").map_err(failed)?) } else { None };
        let task = self.task(&id)?;
        let pid_file = task.bundle.join("init.pid");
        let bundle = task.bundle.to_string_lossy().into_owned();
        let pid_path = pid_file.to_string_lossy().into_owned();
        let mut args = vec!["create", "--bundle", &bundle, "--pid-file", &pid_path];
        let console = console.map(|path| path.to_string_lossy().into_owned());
        if let Some(path) = &console {
            args.extend(["--console-socket", path]);
        }
        if task.runtime.no_pivot {
            args.push("--no-pivot");
        }
        if task.runtime.no_new_keyring {
            args.push("--no-new-keyring");
        }
        args.push(&id);
        let mut command = task.runtime.command(&task.bundle, &args);
        if !request.terminal {
            let ends = task.init.stdio.open(&id, &namespace).map_err(failed)?;
            command.stdin(ends.stdin).stdout(ends.stdout).stderr(ends.stderr);
        }
        self.run(command, move |shim, well| {
            let answer = shim.created(request, &pid_file, well);
            shim.reply(reply, answer);
        })
        .map_err(|e| failed(format!("OCI runtime create failed: {e}")))
    }

    fn created(&mut self, request: pb::CreateTaskRequest, pid_file: &Path, well: bool) -> Result<Vec<u8>, Error> {
        let id = &request.id;
        let pid = read_pid(pid_file).filter(|_| well);
        let Some((pid, pidfd)) = pid else {
            let task = self.task(id)?;
            let why = task.runtime.last_error(&task.bundle).unwrap_or_else(|| "it said nothing".into());
            self.forget_console(id, "");
            self.forget(id)?;
            return Err(failed(format!("OCI runtime create failed: {why}")));
        };
        let process = self.process(id, "")?;
        process.pid = pid;
        process.pidfd = Some(pidfd);
        process.phase = Phase::Created;
        let io = event::TaskIo {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let created = event::TaskCreate {
            container_id: id.clone(),
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(io),
            checkpoint: request.checkpoint,
            pid,
        };
        self.publisher.publish("/tasks/create", "TaskCreate", &created);
        Ok(pb::CreateTaskResponse { pid }.encode_to_vec())
    }

    /// Undoes a create that failed.
    fn forget(&mut self, id: &str) -> Result<(), Error> {
        let Some(task) = self.tasks.remove(id) else { return Ok(()) };
        mounts::unmount_all(&task.bundle.join("rootfs")).map_err(failed)
    }

    fn start(&mut self, reply: Reply, request: &pb::StartRequest) -> Answer {
        let (id, exec) = (request.id.clone(), request.exec_id.clone());
        let task = self.task(&id)?;
        if !exec.is_empty() && !matches!(task.init.phase, Phase::Created | Phase::Running) {
            return Err(error(Code::FailedPrecondition, format!("container {id} is not running")));
        }
        let process = self.process(&id, &exec)?;
        let before = process.phase;
        let Ok((phase, _)) = before.on(Event::StartCalled) else {
            return Err(error(Code::FailedPrecondition, format!("cannot start a process that is {}", word(process))));
        };
        process.phase = phase;
        let started = if exec.is_empty() { self.start_init(reply, &id) } else { self.start_exec(reply, &id, &exec) };
        if let Err(error) = started {
            self.process(&id, &exec)?.phase = before;
            return Err(error);
        }
        Ok(None)
    }

    fn start_init(&mut self, reply: Reply, id: &str) -> Result<(), Error> {
        let task = self.task(id)?;
        let command = task.runtime.command(&task.bundle, &["start", id]);
        let id = id.to_owned();
        self.run(command, move |shim, well| {
            let answer = shim.started(&id, "", well);
            shim.reply(reply, answer);
        })
        .map_err(failed)
    }

    fn start_exec(&mut self, reply: Reply, id: &str, exec: &str) -> Result<(), Error> {
        let namespace = self.namespace.clone();
        let terminal = self.process(id, exec)?.stdio.terminal;
        let console = if terminal { Some(self.console(id, exec).map_err(failed)?) } else { None };
        let console = console.map(|path| path.to_string_lossy().into_owned());
        let task = self.task(id)?;
        let (pid_file, spec_file) = (task.bundle.join(format!("{exec}.pid")), task.bundle.join(format!("{exec}.json")));
        let (bundle, runtime) = (task.bundle.clone(), task.runtime.clone());
        let process = self.process(id, exec)?;
        fs::write(&spec_file, &process.spec).map_err(|e| failed(format!("writing {}: {e}", spec_file.display())))?;
        let (pid_path, spec_path) = (pid_file.to_string_lossy().into_owned(), spec_file.to_string_lossy().into_owned());
        let mut args = vec!["exec", "--process", &spec_path, "--detach", "--pid-file", &pid_path];
        if let Some(path) = &console {
            args.extend(["--console-socket", path]);
        }
        args.push(id);
        let mut command = runtime.command(&bundle, &args);
        if !terminal {
            let ends = process.stdio.open(id, &namespace).map_err(failed)?;
            command.stdin(ends.stdin).stdout(ends.stdout).stderr(ends.stderr);
        }
        let (id, exec) = (id.to_owned(), exec.to_owned());
        self.run(command, move |shim, well| {
            let _ = fs::remove_file(&spec_file); // of no use any more
            let pid = read_pid(&pid_file).filter(|_| well);
            let _ = fs::remove_file(&pid_file);
            if let (Some((pid, pidfd)), Ok(process)) = (pid, shim.process(&id, &exec)) {
                process.pid = pid;
                process.pidfd = Some(pidfd);
            }
            let answer = shim.started(&id, &exec, well);
            shim.reply(reply, answer);
        })
        .map_err(failed)
    }

    fn started(&mut self, id: &str, exec: &str, well: bool) -> Result<Vec<u8>, Error> {
        if !well {
            let task = self.task(id)?;
            let verb = if exec.is_empty() { "start" } else { "exec" };
            let why = task.runtime.last_error(&task.bundle).unwrap_or_else(|| "it said nothing".into());
            self.forget_console(id, exec);
            self.happened(id, exec, Event::StartFailed);
            self.process(id, exec)?.stdio.close();
            return Err(failed(format!("OCI runtime {verb} failed: {why}")));
        }
        self.happened(id, exec, Event::Started);
        let pid = self.process(id, exec)?.pid;
        Ok(pb::StartResponse { pid }.encode_to_vec())
    }

    /// A process has ended.
    pub fn exited(&mut self, id: &str, exec: &str, exit: Exit) {
        if exec.is_empty() {
            self.end_execs(id);
        }
        self.happened(id, exec, Event::Exited(exit));
    }

    /// With the first process all others end. In a PID namespace of its own the kernel sees to that; killing what is gone
    /// already is no error.
    fn end_execs(&mut self, id: &str) {
        let Some(task) = self.tasks.get(id) else { return };
        for (_, process) in task.processes().skip(1) {
            if let Some(pidfd) = &process.pidfd {
                let _ = sys::send_signal(pidfd, libc::SIGKILL);
            }
        }
    }

    /// Moves a process on and tells the daemon, and whoever waits.
    fn happened(&mut self, id: &str, exec: &str, event: Event) {
        let Ok(process) = self.process(id, exec) else { return };
        let Ok((phase, tells)) = process.phase.on(event) else { return };
        process.phase = phase;
        let pid = process.pid;
        for tell in tells {
            match tell {
                Tell::Start if exec.is_empty() => {
                    let started = event::TaskStart { container_id: id.into(), pid };
                    self.publisher.publish("/tasks/start", "TaskStart", &started);
                }
                Tell::Start => {
                    let started = event::TaskExecStarted { container_id: id.into(), exec_id: exec.into(), pid };
                    self.publisher.publish("/tasks/exec-started", "TaskExecStarted", &started);
                }
                Tell::Exit(exit) => self.tell_exit(id, exec, pid, exit),
            }
        }
    }

    fn tell_exit(&mut self, id: &str, exec: &str, pid: u32, exit: Exit) {
        let Ok(process) = self.process(id, exec) else { return };
        process.stdio.close();
        let waiters = std::mem::take(&mut process.waiters);
        let exited = event::TaskExit {
            container_id: id.into(),
            id: if exec.is_empty() { id } else { exec }.into(),
            pid,
            exit_status: exit.status,
            exited_at: Some(exit.at.into()),
        };
        self.publisher.publish("/tasks/exit", "TaskExit", &exited);
        let answer = pb::WaitResponse { exit_status: exit.status, exited_at: Some(exit.at.into()) }.encode_to_vec();
        for waiter in waiters {
            self.reply(waiter, Ok(answer.clone()));
        }
    }

    fn state(&mut self, request: pb::StateRequest) -> Answer {
        let bundle = self.task(&request.id)?.bundle.to_string_lossy().into_owned();
        let paused = self.task(&request.id)?.init.paused;
        let process = self.process(&request.id, &request.exec_id)?;
        let exit = process.phase.exit();
        let status = match process.phase {
            Phase::Added | Phase::Created | Phase::Starting => Status::Created,
            Phase::Running if paused => Status::Paused,
            Phase::Running => Status::Running,
            Phase::Early(_) | Phase::Stopped(_) => Status::Stopped,
        };
        done(&pb::StateResponse {
            id: request.id,
            bundle,
            pid: process.pid,
            status: status.into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| exit.at.into()),
            exec_id: request.exec_id,
        })
    }

    fn kill(&mut self, reply: Reply, request: &pb::KillRequest) -> Answer {
        let process = self.process(&request.id, &request.exec_id)?;
        let finished = || error(Code::NotFound, "process already finished: not found");
        if process.phase.exit().is_some() {
            return Err(finished());
        }
        if !request.exec_id.is_empty() {
            let Some(pidfd) = &process.pidfd else {
                return Err(error(Code::FailedPrecondition, format!("exec {} is not running", request.exec_id)));
            };
            let signal = i32::try_from(request.signal).unwrap_or(0);
            sys::send_signal(pidfd, signal).map_err(|_| finished())?;
            return done(&());
        }
        let signal = request.signal.to_string();
        let task = self.task(&request.id)?;
        let mut args = vec!["kill"];
        if request.all {
            args.push("--all");
        }
        args.extend([request.id.as_str(), &signal]);
        let command = task.runtime.command(&task.bundle, &args);
        self.run_verb(reply, command, &request.id, "kill", |_, _| {})
    }

    /// A verb of the runtime that answers with nothing; `then` runs if it went well.
    fn run_verb(
        &mut self,
        reply: Reply,
        command: std::process::Command,
        id: &str,
        verb: &'static str,
        then: impl FnOnce(&mut Shim, &str) + 'static,
    ) -> Answer {
        let id = id.to_owned();
        let ended = move |shim: &mut Shim, well| {
            let answer = if well {
                then(shim, &id);
                Ok(Vec::new())
            } else {
                let why = shim.task(&id).ok().and_then(|task| task.runtime.last_error(&task.bundle));
                Err(runtime_error(verb, &why.unwrap_or_else(|| "it said nothing".into())))
            };
            shim.reply(reply, answer);
        };
        self.run(command, ended).map_err(failed)?;
        Ok(None)
    }

    fn wait_for(&mut self, reply: Reply, request: &pb::WaitRequest) -> Answer {
        let process = self.process(&request.id, &request.exec_id)?;
        match process.phase {
            Phase::Stopped(exit) => {
                done(&pb::WaitResponse { exit_status: exit.status, exited_at: Some(exit.at.into()) })
            }
            _ => {
                process.waiters.push(reply);
                Ok(None)
            }
        }
    }

    fn exec(&mut self, request: pb::ExecProcessRequest) -> Answer {
        let (id, exec) = (request.id, request.exec_id);
        let task = self.task(&id)?;
        if exec.is_empty() || exec.contains('/') || exec.starts_with('.') {
            return Err(error(Code::InvalidArgument, format!("exec id {exec:?} is not a name")));
        }
        if task.execs.contains_key(&exec) {
            return Err(error(Code::AlreadyExists, format!("exec {exec} of {id}: already exists")));
        }
        if task.init.phase.exit().is_some() || task.init.paused {
            return Err(error(
                Code::FailedPrecondition,
                format!("cannot exec in a container that is {}", word(&task.init)),
            ));
        }
        let stdio = Stdio::new(request.stdin, request.stdout, request.stderr, request.terminal);
        let mut spec = request.spec.unwrap_or_default().value;
        if request.terminal {
            // The runtime goes by the process's own word.
            let mut json: serde_json::Value = serde_json::from_slice(&spec)
                .map_err(|e| error(Code::InvalidArgument, format!("reading the process: {e}")))?;
            json["terminal"] = true.into();
            spec = json.to_string().into_bytes();
        }
        task.execs.insert(exec.clone(), Process::new(stdio, spec));
        let added = event::TaskExecAdded { container_id: id, exec_id: exec };
        self.publisher.publish("/tasks/exec-added", "TaskExecAdded", &added);
        done(&())
    }

    fn delete(&mut self, reply: Reply, request: &pb::DeleteRequest) -> Answer {
        let (id, exec) = (request.id.clone(), request.exec_id.clone());
        let process = self.process(&id, &exec)?;
        match process.phase {
            Phase::Stopped(_) | Phase::Added | Phase::Created => {}
            _ => return Err(error(Code::FailedPrecondition, format!("cannot delete a {} process", word(process)))),
        }
        if exec.is_empty() {
            return self.delete_init(reply, &id);
        }
        let removed = self.task(&id)?.execs.remove(&exec);
        let (pid, exit) = removed.map_or((0, None), |process| (process.pid, process.phase.exit()));
        let deleted = self.tell_delete(&id, &exec, pid, exit);
        done(&deleted)
    }

    fn delete_init(&mut self, reply: Reply, id: &str) -> Answer {
        let task = self.task(id)?;
        let stopped = task.init.phase.exit().is_some();
        let args: &[&str] = if stopped { &["delete", id] } else { &["delete", "--force", id] };
        let command = task.runtime.command(&task.bundle, args);
        let id = id.to_owned();
        self.run(command, move |shim, well| {
            let answer = shim.deleted(&id, well);
            shim.reply(reply, answer);
        })
        .map_err(failed)?;
        Ok(None)
    }

    fn deleted(&mut self, id: &str, well: bool) -> Result<Vec<u8>, Error> {
        let task = self.task(id)?;
        if !well {
            let why = task.runtime.last_error(&task.bundle).unwrap_or_else(|| "it said nothing".into());
            if !why.contains("does not exist") {
                return Err(failed(format!("OCI runtime delete failed: {why}")));
            }
        }
        mounts::unmount_all(&task.bundle.join("rootfs")).map_err(failed)?;
        let (pid, exit) = (task.init.pid, task.init.phase.exit());
        self.tasks.remove(id);
        Ok(self.tell_delete(id, "", pid, exit).encode_to_vec())
    }

    fn tell_delete(&mut self, id: &str, exec: &str, pid: u32, exit: Option<Exit>) -> pb::DeleteResponse {
        let (exit_status, exited_at) = (exit.map_or(0, |exit| exit.status), exit.map(|exit| exit.at.into()));
        let deleted = event::TaskDelete {
            container_id: id.into(),
            pid,
            exit_status,
            exited_at,
            id: if exec.is_empty() { String::new() } else { exec.into() },
        };
        self.publisher.publish("/tasks/delete", "TaskDelete", &deleted);
        pb::DeleteResponse { pid, exit_status, exited_at }
    }

    fn pids(&mut self, request: &pb::PidsRequest) -> Answer {
        let task = self.task(&request.id)?;
        let mut pids = metrics::pids(task.init.pid);
        if pids.is_empty() && task.init.phase.exit().is_none() {
            pids.push(task.init.pid);
        }
        let detail = |pid: u32| {
            let exec = task.execs.iter().find(|(_, process)| process.pid == pid && process.pidfd.is_some());
            exec.map(|(exec, _)| {
                any::pack("containerd.runc.v1.ProcessDetails", &ProcessDetails { exec_id: exec.clone() })
            })
        };
        let processes = pids.into_iter().map(|pid| ProcessInfo { pid, info: detail(pid) }).collect();
        done(&pb::PidsResponse { processes })
    }

    fn pause(&mut self, reply: Reply, id: &str, pause: bool) -> Answer {
        let task = self.task(id)?;
        if task.init.phase != Phase::Running {
            return Err(error(
                Code::FailedPrecondition,
                format!("cannot pause a container that is {}", word(&task.init)),
            ));
        }
        let verb = if pause { "pause" } else { "resume" };
        let command = task.runtime.command(&task.bundle, &[verb, id]);
        self.run_verb(reply, command, id, verb, move |shim, id| {
            if let Ok(task) = shim.task(id) {
                task.init.paused = pause;
            }
            let container_id = id.to_owned();
            if pause {
                shim.publisher.publish("/tasks/paused", "TaskPaused", &event::TaskPaused { container_id });
            } else {
                shim.publisher.publish("/tasks/resumed", "TaskResumed", &event::TaskResumed { container_id });
            }
        })
    }

    fn close_io(&mut self, request: &pb::CloseIoRequest) -> Answer {
        let process = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.stdio.close_input();
        }
        done(&())
    }

    fn resize(&mut self, request: &pb::ResizePtyRequest) -> Answer {
        let process = self.process(&request.id, &request.exec_id)?;
        if let Some(master) = &process.master {
            let side = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
            let size =
                Winsize { ws_row: side(request.height), ws_col: side(request.width), ws_xpixel: 0, ws_ypixel: 0 };
            tcsetwinsize(master, size).map_err(|errno| failed(format!("resizing the terminal: {errno}")))?;
        }
        done(&())
    }

    fn update(&mut self, reply: Reply, request: pb::UpdateTaskRequest) -> Answer {
        let task = self.task(&request.id)?;
        let resources = task.bundle.join("update.json");
        let value = request.resources.unwrap_or_default().value;
        fs::write(&resources, value).map_err(|e| failed(format!("writing {}: {e}", resources.display())))?;
        let mut command = task.runtime.command(&task.bundle, &["update", "--resources", "-", &request.id]);
        command.stdin(Given::from(fs::File::open(&resources).map_err(failed)?));
        self.run_verb(reply, command, &request.id, "update", move |_, _| drop(fs::remove_file(&resources)))
    }

    fn stats(&mut self, request: &pb::StatsRequest) -> Answer {
        let pid = self.task(&request.id)?.init.pid;
        let stats: Option<Any> = metrics::of(pid);
        let stats = stats
            .ok_or_else(|| error(Code::NotFound, format!("cgroup of {} does not exist: not found", request.id)))?;
        done(&pb::StatsResponse { stats: Some(stats) })
    }

    /// Answers for an unknown id too: the daemon asks before it knows what there is.
    fn connect(&mut self, request: &pb::ConnectRequest) -> Answer {
        let task_pid = self.tasks.get(&request.id).map_or(0, |task| task.init.pid);
        done(&pb::ConnectResponse { shim_pid: std::process::id(), task_pid, version: "v2".into() })
    }

    /// Comes after every task of a group; only the last one ends the process.
    fn shutdown(&mut self) -> Answer {
        if self.tasks.is_empty() {
            self.leave();
        }
        done(&())
    }
}

/// The pid that the runtime has written, and a handle to it. It is our child by now and not waited for, so the number
/// cannot mean another process.
fn read_pid(file: &Path) -> Option<(u32, std::os::fd::OwnedFd)> {
    let pid: i32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    Some((pid.unsigned_abs(), pidfd))
}

/// What callers match decides the code: a process that is gone, a container that was never there.
fn runtime_error(verb: &str, why: &str) -> Error {
    let lower = why.to_lowercase();
    if ["process already finished", "container not running", "no such process"].iter().any(|text| lower.contains(text))
    {
        return error(Code::NotFound, "process already finished: not found");
    }
    if lower.contains("does not exist") {
        return error(Code::NotFound, "no such container: not found");
    }
    failed(format!("OCI runtime {verb} failed: {why}"))
}

fn word(process: &Process) -> &'static str {
    match process.phase {
        Phase::Added | Phase::Created => "created",
        Phase::Starting => "starting",
        Phase::Running if process.paused => "paused",
        Phase::Running => "running",
        Phase::Early(_) | Phase::Stopped(_) => "stopped",
    }
}
