//! `tarectl exec`: one more process in a container.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use prost_types::Any;
use serde_json::{Value, json};
use tare_proto::containerd::services::tasks::v1 as tasks;

use super::attend::{Attendance, Ended};
use super::client::{Client, said};
use super::container::{self, Container};
use super::io::Fifos;
use super::keys::DetachKeys;
use super::{create, terminal};
use crate::oci::{self, User};

const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

#[derive(clap::Args)]
pub struct Args {
    /// Leave the process running
    #[arg(short, long)]
    detach: bool,
    /// The keys that leave a process with a terminal running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable: NAME=VALUE, or NAME alone to pass ours on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Variables, one a line of a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// The working folder
    #[arg(short, long, value_name = "FOLDER")]
    workdir: Option<String>,
    /// USER[:GROUP], by name or number
    #[arg(short, long)]
    user: Option<String>,
    /// All capabilities
    #[arg(long)]
    privileged: bool,
    container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub async fn exec(client: &Client, args: &Args) -> Result<i32> {
    if !args.detach {
        terminal::check(args.interactive, args.tty)?;
    }
    let container = container::find(client, &args.container).await?;
    let id = container.id.as_str();
    let state = container::process(client, id).await?;
    ensure!(container::word(state.as_ref()) != "paused", "container {id} is paused: unpause it before exec");
    let pid = container::running(client, id).await?;
    let process = process(&container, args, pid)?;
    let exec_id = exec_id()?;
    let mut fifos = if args.detach { None } else { Some(Fifos::make(args.interactive, args.tty)?) };
    let path = |pick: fn(&Fifos) -> &String| fifos.as_ref().map_or(String::new(), |fifos| pick(fifos).clone());
    let request = tasks::ExecProcessRequest {
        container_id: id.into(),
        stdin: path(|fifos| &fifos.stdin),
        stdout: path(|fifos| &fifos.stdout),
        stderr: path(|fifos| &fifos.stderr),
        terminal: args.tty,
        spec: Some(Any { type_url: PROCESS.into(), value: process.to_string().into_bytes() }),
        exec_id: exec_id.clone(),
    };
    client.tasks().exec(client.request(request)).await.map_err(said)?;
    let Some(fifos) = &mut fifos else {
        container::start_task(client, id, &exec_id).await?;
        return Ok(0);
    };
    fifos.copy();
    let attendance = Attendance {
        client,
        id,
        exec: &exec_id,
        tty: args.tty,
        proxy: false, // as docker: a signal to the client is no signal to the process
        input: Some(PathBuf::from(&fifos.stdin)).filter(|_| args.interactive),
        close: true,
        keys: args.detach_keys.clone(),
    };
    let ended = attendance.attend(true).await;
    if let Ok(Ended::Left(code)) = ended {
        return Ok(code); // it goes on, and what it prints is nobody's
    }
    let request = tasks::DeleteProcessRequest { container_id: id.into(), exec_id };
    let _ = client.tasks().delete_process(client.request(request)).await; // with --rm, all may be gone by now
    let (Ended::Exit(code) | Ended::Left(code)) = ended?;
    fifos.finish();
    Ok(code)
}

fn exec_id() -> Result<String> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("exec-{:016x}", u64::from_ne_bytes(bytes)))
}

/// The container's own process, with what the command line changes.
fn process(container: &Container, args: &Args, pid: u32) -> Result<Value> {
    let spec = container::spec(container)?;
    let mut process = spec["process"].clone();
    process["args"] = args.command.clone().into();
    process["terminal"] = args.tty.into();
    if let Some(workdir) = &args.workdir {
        ensure!(workdir.starts_with('/'), "--workdir {workdir}: is not an absolute path");
        process["cwd"] = workdir.as_str().into();
    }
    let mut environment: Vec<String> =
        process["env"].as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect();
    if args.tty && !environment.iter().any(|variable| variable.starts_with("TERM=")) {
        environment.push("TERM=xterm".into());
    }
    if let Some(user) = &args.user {
        let user = User::resolve(user, &PathBuf::from(format!("/proc/{pid}/root")))?;
        process["user"] = json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups});
        oci::set_variable(&mut environment, &format!("HOME={}", user.home));
    }
    for variable in create::environment(&args.env_file, &args.env)? {
        oci::set_variable(&mut environment, &variable);
    }
    process["env"] = environment.into();
    if args.privileged {
        let all = oci::all_capabilities();
        process["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    }
    Ok(process)
}
