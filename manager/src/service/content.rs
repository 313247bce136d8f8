use std::io::{Read as _, Seek as _, SeekFrom};

use tare_proto::containerd::events::{ContentCreate, ContentDelete};
use tare_proto::containerd::services::content::v1 as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, Services, in_pieces, lease, mask, namespace, required};
use crate::content::Status as Ingest;
use crate::error::{Doing as _, Error, Result};
use crate::filter::Filter;
use crate::names::{Digest, Labels, LeaseId, Namespace, update_labels};

mod write;

/// What is read at once: it stays in the processor's caches, and far below the 4 MiB that a client takes by default.
const PIECE: usize = 128 << 10;

#[tonic::async_trait]
impl pb::content_server::Content for Services {
    type ListStream = Answers<pb::ListContentResponse>;
    type ReadStream = Answers<pb::ReadContentResponse>;
    type WriteStream = Answers<pb::WriteContentResponse>;

    async fn info(&self, request: Request<pb::InfoRequest>) -> std::result::Result<Response<pb::InfoResponse>, Status> {
        let (namespace, digest) = (namespace(&request)?, Digest::parse(&request.into_inner().digest)?);
        let info = self.blocking(move |services| services.content.info(&namespace, &digest)).await?;
        Ok(Response::new(pb::InfoResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<pb::UpdateRequest>,
    ) -> std::result::Result<Response<pb::UpdateResponse>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let (given, mask) = (required(request.info, "info")?, mask(request.update_mask));
        let digest = Digest::parse(&given.digest)?;
        let info = self
            .blocking(move |services| {
                let change = |labels: &mut Labels| update_labels(labels, &given.labels, &mask);
                services.content.update(&namespace, &digest, change)
            })
            .await?;
        Ok(Response::new(pb::UpdateResponse { info: Some(info) }))
    }

    async fn list(
        &self,
        request: Request<pb::ListContentRequest>,
    ) -> std::result::Result<Response<Self::ListStream>, Status> {
        let (namespace, filters) = (namespace(&request)?, request.into_inner().filters);
        let list = self
            .blocking(move |services| {
                let filter = Filter::parse(&filters)?;
                let mut list = services.content.list(&namespace)?;
                list.retain(|info| filter.matches(|path| field(info, path)));
                Ok(list)
            })
            .await?;
        Ok(Response::new(in_pieces(list, |info| pb::ListContentResponse { info })))
    }

    async fn delete(&self, request: Request<pb::DeleteContentRequest>) -> std::result::Result<Response<()>, Status> {
        let (namespace, digest) = (namespace(&request)?, Digest::parse(&request.into_inner().digest)?);
        let (of, gone) = (namespace.clone(), digest.clone());
        self.blocking(move |services| services.content.delete(&of, &gone)).await?;
        self.tell(&namespace, "/content/delete", &ContentDelete { digest: digest.to_string() });
        self.collector.after(false).await?;
        Ok(Response::new(()))
    }

    async fn read(
        &self,
        request: Request<pb::ReadContentRequest>,
    ) -> std::result::Result<Response<Self::ReadStream>, Status> {
        let (namespace, request) = (namespace(&request)?, request.into_inner());
        let digest = Digest::parse(&request.digest)?;
        let of = digest.clone();
        let (mut blob, start, end) = self
            .blocking(move |services| {
                let size = services.content.info(&namespace, &of)?.size;
                let (start, end) = range(size, request.offset, request.size)?;
                let mut blob = services.content.reader(&namespace, &of)?;
                blob.seek(SeekFrom::Start(start)).doing(|| format!("reading content {of}"))?;
                Ok((blob, start, end))
            })
            .await?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let mut offset = start;
            while offset < end {
                let mut data = vec![0; PIECE.min(usize::try_from(end - offset).unwrap_or(PIECE))];
                let piece = blob.read_exact(&mut data).doing(|| format!("reading content {digest}"));
                let length = data.len() as u64;
                let at = i64::try_from(offset).unwrap_or(i64::MAX);
                let message = piece.map(|()| pb::ReadContentResponse { offset: at, data }).map_err(Status::from);
                let failed = message.is_err();
                if sender.blocking_send(message).is_err() || failed {
                    return; // the client went away, or has been told
                }
                offset += length;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> std::result::Result<Response<pb::StatusResponse>, Status> {
        let (namespace, reference) = (namespace(&request)?, request.into_inner().r#ref);
        let status = self.blocking(move |services| services.content.status(&namespace, &reference)).await?;
        Ok(Response::new(pb::StatusResponse { status: Some(ingest(status)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<pb::ListStatusesRequest>,
    ) -> std::result::Result<Response<pb::ListStatusesResponse>, Status> {
        let (namespace, filters) = (namespace(&request)?, request.into_inner().filters);
        let statuses = self
            .blocking(move |services| {
                let filter = Filter::parse(&filters)?;
                let mut statuses = services.content.statuses(&namespace)?;
                statuses.retain(|status| {
                    filter.matches(|path| matches!(path, [first] if first == "ref").then(|| status.reference.clone()))
                });
                Ok(statuses)
            })
            .await?;
        Ok(Response::new(pb::ListStatusesResponse { statuses: statuses.into_iter().map(ingest).collect() }))
    }

    async fn write(
        &self,
        request: Request<Streaming<pb::WriteContentRequest>>,
    ) -> std::result::Result<Response<Self::WriteStream>, Status> {
        let (namespace, lease) = (namespace(&request)?, lease(&request)?);
        Ok(Response::new(write::answers(self.clone(), namespace, lease, request.into_inner())))
    }

    async fn abort(&self, request: Request<pb::AbortRequest>) -> std::result::Result<Response<()>, Status> {
        let (namespace, reference) = (namespace(&request)?, request.into_inner().r#ref);
        self.blocking(move |services| services.content.abort(&namespace, &reference)).await?;
        Ok(Response::new(()))
    }
}

/// The bytes that are asked for: all from `offset` if `size` is 0, fewer than `size` where the blob ends.
fn range(total: i64, offset: i64, size: i64) -> Result<(u64, u64)> {
    if offset < 0 || size < 0 {
        return Err(Error::InvalidArgument(format!("reading {size} bytes at {offset}")));
    }
    if offset > total {
        return Err(Error::OutOfRange(format!("reading at {offset} of {total} bytes")));
    }
    let end = if size == 0 { total } else { offset.saturating_add(size).min(total) };
    Ok((offset.unsigned_abs(), end.unsigned_abs()))
}

fn ingest(status: Ingest) -> pb::Status {
    pb::Status {
        started_at: Some(status.started.into()),
        updated_at: Some(status.updated.into()),
        r#ref: status.reference,
        offset: i64::try_from(status.offset).unwrap_or(i64::MAX),
        total: i64::try_from(status.total).unwrap_or(i64::MAX),
        expected: status.expected,
    }
}

fn field(info: &pb::Info, path: &[String]) -> Option<String> {
    match path {
        [first] if first == "digest" => Some(info.digest.clone()),
        [first, rest @ ..] if first == "labels" => info.labels.get(&rest.join(".")).cloned(),
        _ => None,
    }
}

impl Services {
    pub(super) fn tell_content(&self, namespace: &Namespace, digest: &Digest, size: i64) {
        self.tell(namespace, "/content/create", &ContentCreate { digest: digest.to_string(), size });
    }

    pub(super) fn hold_content(&self, namespace: &Namespace, lease: Option<&LeaseId>, digest: &Digest) -> Result<()> {
        self.hold(namespace, lease, "content", digest.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_lies_within_the_blob() {
        for ((total, offset, size), expected) in [
            ((10, 0, 0), Some((0, 10))),
            ((10, 4, 0), Some((4, 10))),
            ((10, 4, 6), Some((4, 10))),
            ((10, 10, 0), Some((10, 10))),
            ((10, 11, 0), None),
            ((10, 4, 7), Some((4, 10))),
            ((10, -1, 0), None),
            ((10, 1, i64::MAX), Some((1, 10))),
        ] {
            assert_eq!(range(total, offset, size).ok(), expected, "{total} {offset} {size}");
        }
    }
}
