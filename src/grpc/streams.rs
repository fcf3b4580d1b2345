//! EncryptStream and DecryptStream.

use std::pin::Pin;

use futures_util::Stream;
use tonic::Status;

use super::proto;

/// Pieces of a ciphertext.
pub type Sealed = Pin<Box<dyn Stream<Item = Result<proto::EncryptStreamResponse, Status>> + Send>>;
/// Pieces of a plaintext.
pub type Opened = Pin<Box<dyn Stream<Item = Result<proto::DecryptStreamResponse, Status>> + Send>>;
