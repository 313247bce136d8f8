//! `tarectl top`: the processes of a container, by ps(1).

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tare_proto::containerd::services::tasks::v1::ListPidsRequest;

use super::client::{Client, said};
use super::container;

#[derive(clap::Args)]
pub struct Args {
    container: String,
    /// Options for ps, instead of -ef
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub async fn top(client: &Client, args: &Args) -> Result<i32> {
    let id = container::find(client, &args.container).await?.id;
    container::running(client, &id).await?;
    let request = client.request(ListPidsRequest { container_id: id });
    let pids = client.tasks().list_pids(request).await.map_err(said)?.into_inner().processes;
    let options = if args.options.is_empty() { vec!["-ef".to_owned()] } else { args.options.clone() };
    let out = Command::new("ps").args(&options).output().context("running ps")?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "ps {}: {}", options.join(" "), said.lines().next().unwrap_or_default());
    let text = String::from_utf8_lossy(&out.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_whitespace().position(|title| title == "PID");
    let column = column.with_context(|| format!("ps {}: prints no column PID", options.join(" ")))?;
    println!("{header}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse::<u32>().ok());
        if pids.iter().any(|process| Some(process.pid) == pid) {
            println!("{line}");
        }
    }
    Ok(0)
}
