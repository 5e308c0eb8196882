//! What somebody may have meant.

/// A suggestion must be this near, or begin alike.
const MIN_PREFIX: usize = 3;

/// Finds what somebody may have meant: the nearest candidate within a third of the word's length, or the
/// only one that begins with the word. The word itself is no suggestion: whoever wrote it meant it.
pub fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str> + Clone) -> Option<&'c str> {
    let lower = word.to_ascii_lowercase();
    let limit = (lower.chars().count() / 3).max(1);
    let candidates = candidates.filter(|c| *c != word);
    let near = candidates
        .clone()
        .filter(|c| c.len().abs_diff(lower.len()) <= limit)
        .map(|c| (strsim::damerau_levenshtein(&lower, c), c))
        .filter(|&(distance, _)| distance <= limit)
        .min();
    if let Some((_, near)) = near {
        return Some(near);
    }
    if lower.len() < MIN_PREFIX {
        return None;
    }
    let mut alike = candidates.filter(|c| c.starts_with(&lower));
    alike.next().filter(|_| alike.next().is_none())
}

/// Finds which name somebody may have meant, as `nearest` does, where case, blanks around and a final dot make no other
/// name: none that differs in those alone.
pub fn nearest_name<'c>(word: &str, candidates: impl Iterator<Item = &'c str> + Clone) -> Option<&'c str> {
    let bare = bare(word);
    nearest(bare, candidates.filter(|c| !self::bare(c).eq_ignore_ascii_case(bare)))
}

/// Takes away what makes no other name, but for the case.
fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| c.is_whitespace() || c == '.')
}

/// Says it.
pub(super) fn suggestion(word: impl std::fmt::Display) -> String {
    format!("did you mean `{word}`?")
}

/// Lists words as people do: `a`, `b` or `c`.
pub(super) fn quoted(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("`{w}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.join(""),
    }
}

/// Turns `Cart_Service` into `cart-service` and `vm-1.example.com` into `vm-1`, if that makes it a name.
pub(super) fn as_name(text: &str) -> Option<String> {
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.split('.').next().unwrap_or_default();
    let mended: String = lower.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let mended = mended.trim_matches('-');
    let is_name = (1..=63).contains(&mended.len()) && text.is_ascii();
    is_name.then(|| mended.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_suggestion_is_near_or_begins_alike() {
        let names = ["upstream", "backends", "productcatalogservice", "cartservice"];
        let near = |word| nearest(word, names.iter().copied());
        assert_eq!(near("upstrem"), Some("upstream"));
        assert_eq!(near("Backend"), Some("backends"));
        assert_eq!(near("product"), Some("productcatalogservice"));
        assert_eq!(near("zzz"), None);
        assert_eq!(near(""), None);
        assert_eq!(near("ä"), None);
    }

    proptest! {
        #[test]
        fn nobody_is_asked_whether_the_word_itself_was_meant(
            words in prop::collection::vec("[a-zA-Z][a-zA-Z0-9.-]{0,12}", 1..6),
            asked in any::<prop::sample::Index>(),
            before in "[ .]{0,2}",
            after in "[ .\\t]{0,3}",
            is_shouted in any::<bool>(),
        ) {
            let word = asked.get(&words);
            let known = || words.iter().map(String::as_str);
            prop_assert_ne!(nearest(word, known()), Some(word.as_str()));
            let shouted = if is_shouted { word.to_ascii_uppercase() } else { word.clone() };
            let asked = format!("{before}{shouted}{after}");
            prop_assert_ne!(nearest(&asked, known()), Some(asked.as_str()));
            if let Some(near) = nearest_name(&asked, known()) {
                prop_assert!(!bare(near).eq_ignore_ascii_case(bare(&asked)), "`{}`: `{}`", asked, near);
            }
        }
    }

    #[test]
    fn the_same_word_is_a_suggestion_only_where_its_case_matters() {
        let names = ["cart", "carts"];
        assert_eq!(nearest("cart", names.into_iter()), Some("carts"));
        assert_eq!(nearest("Cart", names.into_iter()), Some("cart"));
        for word in ["cart", "Cart", "cart.", " cart "] {
            assert_eq!(nearest_name(word, names.into_iter()), Some("carts"), "{word}");
            assert_eq!(nearest_name(word, ["cart"].into_iter()), None, "{word}");
        }
    }

    #[test]
    fn a_near_name_is_mended() {
        assert_eq!(as_name("Cart_Service").as_deref(), Some("cart-service"));
        assert_eq!(as_name("vm-1.example.com").as_deref(), Some("vm-1"));
        assert_eq!(as_name("__"), None);
        assert_eq!(as_name("café"), None);
    }
}
