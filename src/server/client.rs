//! The client at the other end of a connection.

use std::net::IpAddr;

use rustix::net::sockopt;

/// The other side of connections, which share what one client may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ClientId {
    /// A host, by its IPv4 address or its /64 network of IPv6: a host has all addresses of one.
    Host(IpAddr),
    /// A user of this machine, over a unix socket.
    User(u32),
    /// The server's own work.
    Server,
}

impl ClientId {
    /// The one with this address.
    pub(super) fn of_address(address: IpAddr) -> Self {
        Self::Host(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(network.into())
            }
            address @ IpAddr::V4(_) => address,
        })
    }

    /// The process on the other side of a unix socket, by its user.
    pub(super) fn of_socket(socket: &tokio::net::UnixStream) -> Self {
        let credentials = sockopt::socket_peercred(socket);
        Self::User(credentials.map_or(u32::MAX, |credentials| credentials.uid.as_raw()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_client_with_all_its_addresses() {
        let of = |address: &str| ClientId::of_address(address.parse().unwrap());
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}
