//! One stream of writes to one reference: every message is answered, a commit is the last.

use tare_proto::containerd::services::content::v1 as pb;
use tonic::Streaming;

use super::super::{Answers, Services};
use crate::content::Writer;
use crate::error::{Error, Result};
use crate::names::{Digest, LeaseId, Namespace};

pub(super) fn answers(
    services: Services,
    namespace: Namespace,
    lease: Option<LeaseId>,
    mut messages: Streaming<pb::WriteContentRequest>,
) -> Answers<pb::WriteContentResponse> {
    Box::pin(async_stream::try_stream! {
        let mut session = Session { namespace, lease, reference: String::new(), expected: None, total: 0, writer: None };
        while let Some(message) = messages.message().await? {
            let last = message.action() == pb::WriteAction::Commit;
            let (again, answer) = services.blocking(move |services| {
                let answer = session.step(services, message)?;
                Ok((session, answer))
            }).await?;
            session = again;
            yield answer;
            if last {
                break;
            }
        }
    })
}

struct Session {
    namespace: Namespace,
    lease: Option<LeaseId>,
    reference: String,
    expected: Option<Digest>,
    total: i64,
    writer: Option<Writer>,
}

impl Session {
    fn step(&mut self, services: &Services, message: pb::WriteContentRequest) -> Result<pb::WriteContentResponse> {
        self.learn(&message)?;
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.open(services)?,
        };
        let action = message.action();
        if action == pb::WriteAction::Stat {
            let digest = writer.digest();
            return Ok(self.answer(action, writer, Some(&digest)));
        }
        self.position(&mut writer, message.offset)?;
        if !message.data.is_empty() {
            writer.write(&message.data)?;
        }
        if action == pb::WriteAction::Commit {
            return self.commit(services, writer, &message);
        }
        Ok(self.answer(action, writer, None))
    }

    /// What is said once holds for the stream; what is said again must be the same.
    fn learn(&mut self, message: &pb::WriteContentRequest) -> Result<()> {
        if self.reference.is_empty() {
            if message.r#ref.is_empty() {
                return Err(Error::InvalidArgument("first message must have a reference".into()));
            }
            self.reference.clone_from(&message.r#ref);
        } else if !message.r#ref.is_empty() && message.r#ref != self.reference {
            return Err(Error::InvalidArgument(format!("the stream writes {}, not {}", self.reference, message.r#ref)));
        }
        if !message.expected.is_empty() {
            let expected = Digest::parse(&message.expected)?;
            if self.expected.as_ref().is_some_and(|known| *known != expected) {
                return Err(Error::InvalidArgument(format!("commit digest changed to {expected}")));
            }
            self.expected = Some(expected);
        }
        if message.total < 0 || (message.total > 0 && self.total > 0 && message.total != self.total) {
            return Err(Error::InvalidArgument(format!("total size changed from {} to {}", self.total, message.total)));
        }
        self.total = self.total.max(message.total);
        Ok(())
    }

    fn open(&self, services: &Services) -> Result<Writer> {
        let lease = self.lease.as_ref();
        if let Some(expected) = &self.expected {
            services.hold_content(&self.namespace, lease, expected)?;
        }
        services.hold(&self.namespace, lease, "ingests", &self.reference)?;
        let total = self.total.unsigned_abs();
        services.content.writer(&self.namespace, &self.reference, total, self.expected.as_ref())
    }

    /// Data goes where the last ended; from the beginning, it replaces what was there.
    fn position(&self, writer: &mut Writer, offset: i64) -> Result<()> {
        let now = writer.status().offset;
        match u64::try_from(offset) {
            Ok(0) if now > 0 => writer.restart(),
            Ok(offset) if offset == now => Ok(()),
            _ => Err(Error::OutOfRange(format!("write of {} at {offset}, after {now} bytes", self.reference))),
        }
    }

    fn commit(
        &self,
        services: &Services,
        mut writer: Writer,
        message: &pb::WriteContentRequest,
    ) -> Result<pb::WriteContentResponse> {
        if let Some(expected) = &self.expected {
            writer.expect(expected)?;
        }
        let (status, written) = (writer.status(), writer.digest());
        if status.offset == 0 && self.expected.is_none() && self.total == 0 {
            return Err(Error::InvalidArgument(format!("committing {}: nothing was written", self.reference)));
        }
        // Held before it is there, so that the collector never sees it loose.
        services.hold_content(&self.namespace, self.lease.as_ref(), &written)?;
        let digest = writer.commit(self.total.unsigned_abs(), self.expected.as_ref(), &message.labels)?;
        let size = i64::try_from(status.offset).unwrap_or(i64::MAX);
        services.tell_content(&self.namespace, &digest, size);
        Ok(pb::WriteContentResponse {
            action: pb::WriteAction::Commit.into(),
            started_at: Some(status.started.into()),
            updated_at: Some(status.updated.into()),
            offset: size,
            total: size,
            digest: digest.to_string(),
        })
    }

    fn answer(&mut self, action: pb::WriteAction, writer: Writer, digest: Option<&Digest>) -> pb::WriteContentResponse {
        let status = writer.status();
        self.writer = Some(writer);
        pb::WriteContentResponse {
            action: action.into(),
            started_at: Some(status.started.into()),
            updated_at: Some(status.updated.into()),
            offset: i64::try_from(status.offset).unwrap_or(i64::MAX),
            total: i64::try_from(status.total).unwrap_or(i64::MAX),
            digest: digest.map(ToString::to_string).unwrap_or_default(),
        }
    }
}
