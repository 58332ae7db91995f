//! Adding to a server's store.
//!
//! castore-fs servers accept an addition as one stream and make it durable and visible at its end
//! ([`streamed`]). Others accept blobs one by one, Directories a closure at a time and Nix store
//! paths, each durable by itself ([`piecewise`]): an interrupted addition leaves blobs and
//! Directories there, which cost only space; roots come last.

mod piecewise;
mod streamed;

use std::sync::Arc;

use self::piecewise::PiecewiseIngest;
use self::streamed::StreamedIngest;
use super::GrpcServer;
use crate::proto::castore_fs::services::ingest_service_client::IngestServiceClient;
use crate::store::failure::{CallFailure, FailureKind};
use crate::store::upstream;
use crate::store::{Error, Ingest};

/// Bytes of blobs in a message: tonic's default limit is 4 MiB, and other servers may have it.
const MESSAGE: usize = 1 << 20;
/// Messages that may wait for the network.
const AHEAD: usize = 16;

/// Starts an addition, in the way that the server supports.
pub(super) fn begin(server: Arc<GrpcServer>) -> Result<Box<dyn Ingest>, Error> {
    // An addition that is aborted at once shows whether the server accepts additions.
    let endpoint = server.endpoint.clone();
    let asked = server.wait(async move {
        endpoint
            .call(|connection| async move {
                let mut client = IngestServiceClient::new(connection);
                client.ingest(tokio_stream::empty()).await
            })
            .await
    });
    match asked {
        Ok(_) => {}
        Err(failure) if failure.is(FailureKind::Conflict) => {}
        Err(failure) if failure.is(FailureKind::Unsupported) => {
            return Ok(Box::new(PiecewiseIngest::new(server)));
        }
        Err(failure) => return Err(server.endpoint.error("starting an addition", failure)),
    }
    Ok(Box::new(StreamedIngest::new(server)))
}

impl GrpcServer {
    /// Does `work` on the network's runtime, for a thread that blocks.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, CallFailure>> + Send + 'static,
    ) -> Result<T, CallFailure> {
        upstream::wait(&self.endpoint.runtime, work)
    }
}
