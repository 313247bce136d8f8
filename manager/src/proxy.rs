//! Programs that serve a part of containerd's API in our place: proxy plugins.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::error::{Error, Result};
use crate::names::Namespace;

/// A connection that is made when it is needed, and again when it was lost.
pub fn channel(address: &Path) -> Channel {
    let path: PathBuf = address.to_owned();
    // The name is for the header alone; the connector knows where to go.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

/// # Errors
/// Never, for a namespace's name fits a header.
pub fn request<M>(namespace: &Namespace, message: M) -> Result<Request<M>> {
    let mut request = Request::new(message);
    let wrong = |_| Error::InvalidArgument(format!("namespace {:?} fits no header", namespace.as_str()));
    request.metadata_mut().insert("containerd-namespace", namespace.as_str().parse().map_err(wrong)?);
    Ok(request)
}

/// Another program's refusal.
pub fn refused(status: Status) -> Error {
    Error::told(status.code() as i32, status.message())
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_refusal_keeps_its_class_and_says_it_once() {
        for text in ["snapshot a: not found", "snapshot a"] {
            let error = refused(Status::new(Code::NotFound, text));
            assert_eq!(error, Error::NotFound("snapshot a".into()));
        }
        assert_eq!(refused(Status::new(Code::Internal, "x")), Error::Unknown("x".into()));
    }
}
