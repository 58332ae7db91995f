//! The protocol between Nix and its daemon, over a Unix socket; no I/O.
//!
//! Everything is made of words (`u64`, little-endian), texts (a length, the bytes, zeros up to the next
//! multiple of 8) and lists (a count, then the elements). A connection begins with a handshake
//! ([`Version`]); then a client sends one operation after the other ([`Operation`]), each of them a word and
//! the fields of the operation, and reads for each messages up to [`LAST`] or an error ([`OperationFailure`]), and
//! after [`LAST`] the result.
//!
//! Observed with Nix 2.26, whose version is 1.38. Versions from 1.35 on are spoken here; the layout of
//! what is read and written here differs between them only where [`Version`] has a method for it.

mod encoder;
mod failure;
mod message;
mod operation;
mod server_message;
mod valid_path;
mod version;

pub use encoder::Encoder;
pub use failure::OperationFailure;
pub use message::{ExpectedInput, MAX_MESSAGE, MAX_TEXT, MessageReader, Value, WireError};
pub use operation::{Field, Operation};
pub use server_message::ServerMessage;
pub use valid_path::{VALID_PATH, put_valid_path, read_valid_path};
pub use version::{ClientTrust, Hello, Version};

/// The first word of a client.
pub const CLIENT_MAGIC: u64 = 0x6e69_7863;
/// The first word of a server.
pub const SERVER_MAGIC: u64 = 0x6478_696f;
/// The message that the result follows.
pub const LAST: u64 = 0x616c_7473;
/// The message of an error, which ends the operation.
pub const ERROR: u64 = 0x6378_7470;

/// The zeros after a text of `length` bytes.
fn padding(length: u64) -> u64 {
    length.wrapping_neg() % 8
}
