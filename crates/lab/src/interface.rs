//! Interfaces of the calling thread's network namespace.

use std::{io, net::IpAddr};

use nix::{
    ifaddrs::getifaddrs,
    net::if_::{if_nameindex, if_nametoindex},
};

/// Names of all interfaces, in the kernel's order.
///
/// # Errors
/// What the kernel says.
pub fn names() -> io::Result<Vec<String>> {
    let interfaces = if_nameindex()?;
    Ok(interfaces.iter().map(|i| i.name().to_string_lossy().into_owned()).collect())
}

/// The index of the interface with this name.
///
/// # Errors
/// What the kernel says; `NotFound`'s errno is ENODEV here.
pub fn index(name: &str) -> io::Result<u32> {
    Ok(if_nametoindex(name)?)
}

/// The link-layer address of the interface with this name.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when there is no such interface, or it has none.
pub fn mac(name: &str) -> io::Result<[u8; 6]> {
    getifaddrs()?
        .filter(|a| a.interface_name == name)
        .find_map(|a| a.address?.as_link_addr()?.addr())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no MAC of {name}")))
}

/// All addresses of the interface with this name, link-local ones included.
///
/// # Errors
/// What the kernel says.
pub fn addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok(getifaddrs()?
        .filter(|a| a.interface_name == name)
        .filter_map(|a| {
            let address = a.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect())
}
