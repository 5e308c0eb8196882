//! Parameters behind a path, as `application/x-www-form-urlencoded`: on the control channel and on the control sockets.

use form_urlencoded::Serializer;

/// Returns a path with parameters behind it.
pub fn with_query(path: &str, parameters: &[(&str, &str)]) -> String {
    if parameters.is_empty() {
        return path.to_owned();
    }
    Serializer::for_suffix(format!("{path}?"), path.len() + 1).extend_pairs(parameters).finish()
}

#[cfg(test)]
mod tests {
    use form_urlencoded::parse;
    use proptest::prelude::*;

    use super::*;

    fn parameter(query: &str, name: &str) -> Option<String> {
        parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    #[test]
    fn whatever_a_name_contains_travels_unchanged() {
        for name in ["a&b=c", "100%", "%41", "a+b", "a b", "ä⛵", "a?b#c/d", "host:n1", "", "\0\n\"\\"] {
            let path = with_query("/v1/why", &[("src", name), ("dst", "x")]);
            let (before, query) = path.split_once('?').expect("it has a query");
            assert_eq!(before, "/v1/why");
            assert!(query.bytes().all(|b| b.is_ascii_graphic() && !b"#\"\\<>`{}|^".contains(&b)), "{query}");
            assert_eq!(parameter(query, "src").as_deref(), Some(name), "{query}");
            assert_eq!(parameter(query, "dst").as_deref(), Some("x"), "{query}");
        }
        assert_eq!(with_query("/v1/services", &[]), "/v1/services");
    }

    #[test]
    fn what_is_badly_encoded_is_read_all_the_same() {
        assert_eq!(parameter("src=host%3An1&dst=cart%3A7070", "src").as_deref(), Some("host:n1"));
        assert_eq!(parameter("src=a", "dst"), None);
        assert_eq!(parameter("a=100%", "a").as_deref(), Some("100%"));
        assert_eq!(parameter("a=%zz%41&a=2", "a").as_deref(), Some("%zzA"));
        assert_eq!(parameter("a=%ff", "a").as_deref(), Some("\u{fffd}"));
    }

    proptest! {
        #[test]
        fn any_text_travels_unchanged(key: String, value: String, query: String, name: String) {
            let path = with_query("/", &[(&key, &value)]);
            prop_assert_eq!(parameter(&path[2..], &key), Some(value));
            let _ = parameter(&query, &name);
        }
    }
}
