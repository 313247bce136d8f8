use tare_proto::tare::network::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Services, namespace};
use crate::error::{Error, Result};
use crate::names::Id;
use crate::networks::{Asked, DEFAULT, Definition, Port};

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl pb::networks_server::Networks for Services {
    async fn list(&self, _: Request<pb::ListRequest>) -> Answer<pb::ListResponse> {
        let networks = self
            .blocking(|services| {
                let found = services.networks.list()?.into_iter();
                found.map(|definition| services.network(definition)).collect::<Result<Vec<_>>>()
            })
            .await?;
        let default = if self.networks.is_able() { DEFAULT.to_owned() } else { String::new() };
        Ok(Response::new(pb::ListResponse { networks, default }))
    }

    async fn create(&self, request: Request<pb::CreateRequest>) -> Answer<pb::CreateResponse> {
        let pb::CreateRequest { name, subnet, gateway, internal } = request.into_inner();
        let made = self.networks.create(&name, &subnet, &gateway, internal).await?;
        Ok(Response::new(pb::CreateResponse { network: Some(self.network(made)?) }))
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Answer<()> {
        self.networks.delete(&request.get_ref().name).await?;
        Ok(Response::new(()))
    }

    async fn attach(&self, request: Request<pb::AttachRequest>) -> Answer<pb::AttachResponse> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let id = Id::parse(&request.container)?;
        let asked = asked(request)?;
        let (networks, folder) = (self.networks.clone(), self.caretaker().folders);
        let hosts_file = folder.join(namespace.as_str()).join(id.as_str()).join("hosts").display().to_string();
        let given = self.finish(async move { networks.attach(&namespace, &id, asked).await }).await?;
        Ok(Response::new(pb::AttachResponse {
            netns: given.netns.display().to_string(),
            addresses: given.addresses.iter().map(ToString::to_string).collect(),
            hosts_file,
            ports: given.ports.iter().map(port).collect(),
        }))
    }

    async fn detach(&self, request: Request<pb::DetachRequest>) -> Answer<()> {
        let (namespace, id) = (namespace(&request)?, Id::parse(&request.get_ref().container)?);
        let networks = self.networks.clone();
        self.finish(async move { networks.detach(&namespace, &id).await }).await?;
        Ok(Response::new(()))
    }
}

impl Services {
    fn network(&self, definition: Definition) -> Result<pb::Network> {
        let containers = self.networks.on(&definition.name)?.into_iter().map(|(of, _)| of).collect();
        let Definition { name, subnets, plugins, internal, .. } = definition;
        Ok(pb::Network { name, subnets, plugins, internal, containers })
    }
}

fn asked(request: pb::AttachRequest) -> Result<Asked> {
    let address = |field: &str, text: &str| match text {
        "" => Ok(None),
        text => {
            text.parse().map(Some).map_err(|_| Error::InvalidArgument(format!("{field}: {text:?} is not an address")))
        }
    };
    let number = |field: &str, port: u32| {
        u16::try_from(port).map_err(|_| Error::InvalidArgument(format!("{field}: {port} is not a port")))
    };
    let mut ports = Vec::new();
    for port in request.ports {
        if !matches!(port.protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(Error::InvalidArgument(format!("ports.protocol: {:?} is not known", port.protocol)));
        }
        ports.push(Port {
            address: address("ports.host_address", &port.host_address)?,
            host: number("ports.host_port", port.host_port)?,
            container: number("ports.container_port", port.container_port)?,
            protocol: port.protocol,
        });
    }
    for text in request.hosts.iter().chain(&request.aliases).chain([&request.hostname]) {
        if text.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Error::InvalidArgument(format!("{text:?}: is not fit for a hosts file")));
        }
    }
    Ok(Asked {
        network: request.network,
        ports,
        hostname: request.hostname,
        aliases: request.aliases,
        hosts: request.hosts,
        address: address("address", &request.address)?,
        mac: Some(request.mac).filter(|mac| !mac.is_empty()),
    })
}

fn port(port: &Port) -> pb::Port {
    pb::Port {
        host_address: port.address.map(|address| address.to_string()).unwrap_or_default(),
        host_port: port.host.into(),
        container_port: port.container.into(),
        protocol: port.protocol.clone(),
    }
}
