use podwire_cni::types::Dns;

/// What a resolv.conf says, as host-local reads it: the last `domain` counts, everything else adds
/// up; lines of one word and comments say nothing.
pub(crate) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let Some(keyword) = words.next() else { continue };
        match keyword.as_str() {
            "nameserver" => dns.nameservers.extend(words.next()),
            "domain" => dns.domain = words.next().or(dns.domain),
            "search" => dns.search.extend(words),
            "options" => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_keyword_and_what_is_none() {
        let dns = parse(
            "# comment\n; another\n\nnameserver 192.0.2.1\nnameserver 2001:db8::1 ignored\n\
             domain a.example\ndomain b.example\nsearch one two\nsearch three\n\
             options ndots:5 rotate\nsortlist 10.0.0.0\nnameserver\n\tnameserver\t192.0.2.2\r\n",
        );
        assert_eq!(dns.nameservers, ["192.0.2.1", "2001:db8::1", "192.0.2.2"]);
        assert_eq!(dns.domain.as_deref(), Some("b.example"));
        assert_eq!(dns.search, ["one", "two", "three"]);
        assert_eq!(dns.options, ["ndots:5", "rotate"]);
        assert!(parse("").is_empty());
    }
}
