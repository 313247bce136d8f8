//! `tarectl net`.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tare_proto::tare::network::v1 as pb;

use super::client::{Client, said};
use super::{each, list};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List networks
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Make a network
    Create(CreateArgs),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(NamesArgs),
    /// Show networks as JSON
    Inspect(NamesArgs),
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    show: list::Show,
}

#[derive(clap::Args)]
pub struct CreateArgs {
    /// The kind of network: bridge is the one that there is
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// Its addresses, such as 10.1.0.0/24; free ones are chosen otherwise
    #[arg(long, value_name = "ADDRESS/PREFIX")]
    subnet: Option<String>,
    /// The host's address on it
    #[arg(long, value_name = "ADDRESS", requires = "subnet")]
    gateway: Option<String>,
    /// Without a way out
    #[arg(long)]
    internal: bool,
    name: String,
}

#[derive(clap::Args)]
pub struct NamesArgs {
    #[arg(required = true)]
    networks: Vec<String>,
}

pub async fn network(client: &Client, command: &Command) -> Result<i32> {
    match command {
        Command::Ls(args) => ls(client, args).await,
        Command::Create(args) => create(client, args).await,
        Command::Rm(args) => Ok(each::name(&args.networks, async |name| {
            let request = client.request(pb::DeleteRequest { name: name.to_owned() });
            client.networks().delete(request).await.map_err(said)?;
            println!("{name}");
            Ok(())
        })
        .await),
        Command::Inspect(args) => inspect(client, args).await,
    }
}

async fn all(client: &Client) -> Result<Vec<pb::Network>> {
    Ok(client.networks().list(client.request(pb::ListRequest {})).await.map_err(said)?.into_inner().networks)
}

async fn ls(client: &Client, args: &ListArgs) -> Result<i32> {
    const COLUMNS: &[(&str, &str)] =
        &[("NAME", "Name"), ("DRIVER", "Driver"), ("SUBNET", "Subnet"), ("CONTAINERS", "Containers")];
    let networks = all(client).await?;
    let own = networks.iter().map(|network| row(network, "bridge"));
    // Those that need no making.
    let always = ["host", "none"].map(|name| json!({"Name": name, "Driver": name, "Subnet": "", "Containers": ""}));
    let rows: Vec<Value> = own.chain(always).collect();
    if args.quiet {
        rows.iter().filter_map(|row| row["Name"].as_str()).for_each(|name| println!("{name}"));
        return Ok(0);
    }
    args.show.print(COLUMNS, &rows)?;
    Ok(0)
}

fn row(network: &pb::Network, driver: &str) -> Value {
    json!({"Name": network.name, "Driver": driver, "Subnet": network.subnets.join(" "), "Internal": network.internal,
        "Containers": network.containers.len()})
}

async fn create(client: &Client, args: &CreateArgs) -> Result<i32> {
    if args.driver != "bridge" {
        bail!("--driver {}: only bridge is supported", args.driver);
    }
    let request = pb::CreateRequest {
        name: args.name.clone(),
        subnet: args.subnet.clone().unwrap_or_default(),
        gateway: args.gateway.clone().unwrap_or_default(),
        internal: args.internal,
    };
    client.networks().create(client.request(request)).await.map_err(said)?;
    println!("{}", args.name);
    Ok(0)
}

async fn inspect(client: &Client, args: &NamesArgs) -> Result<i32> {
    let networks = all(client).await?;
    let mut shown = Vec::new();
    let mut code = 0;
    for name in &args.networks {
        match networks.iter().find(|network| network.name == *name) {
            Some(network) => shown.push(json!({"Name": network.name, "Driver": "bridge", "Internal": network.internal,
                "Subnets": network.subnets, "Plugins": network.plugins, "Containers": network.containers})),
            None => code = each::report(&format!("no such network: {name}")),
        }
    }
    println!("{}", serde_json::to_string_pretty(&shown)?);
    Ok(code)
}
