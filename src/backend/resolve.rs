//! The look-up of a backend's name.

use std::io;
use std::net::SocketAddr;

use crate::net::address::Address;

/// Returns the socket addresses of a host, at least one, without blocking the calling thread. An
/// IP address is not looked up.
///
/// # Errors
///
/// Those of the resolver; `NotFound` for a name without addresses.
pub(crate) async fn resolve(address: &Address) -> io::Result<Vec<SocketAddr>> {
    if let Some(ip) = address.ip() {
        return Ok(vec![SocketAddr::new(ip, address.port)]);
    }
    let found = async_net::resolve((address.host.as_str(), address.port)).await?;
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"));
    }
    Ok(found)
}
