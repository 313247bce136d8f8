//! A lease holds what is being made until something names it: the collector may come at any moment.

use std::time::Duration;

use anyhow::Result;
use tare_proto::containerd::services::leases::v1 as pb;
use tonic::Request;

use super::client::{Client, said};
use crate::gc;

/// So long does it hold if we do not live to give it back.
const LIFE: Duration = Duration::from_secs(60 * 60);

pub struct Lease(String);

impl Lease {
    pub async fn take(client: &Client) -> Result<Lease> {
        let request = pb::CreateRequest { id: String::new(), labels: [gc::expires_after(LIFE)].into() };
        let made = client.leases().create(client.request(request)).await.map_err(said)?;
        Ok(Lease(made.into_inner().lease.unwrap_or_default().id))
    }

    /// A request whose makings this lease holds.
    pub fn request<T>(&self, client: &Client, message: T) -> Request<T> {
        let mut request = client.request(message);
        if let Ok(value) = self.0.parse() {
            request.metadata_mut().insert("containerd-lease", value);
        }
        request
    }

    /// What it held and nothing names may go now. One that cannot be given back ends by itself.
    pub async fn give_back(self, client: &Client) {
        let request = pb::DeleteRequest { id: self.0, sync: false };
        let _ = client.leases().delete(client.request(request)).await;
    }
}
