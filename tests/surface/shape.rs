//! What stays the same of a text when addresses, times and figures change.

use serde_json::Value;

/// Adds the path and the type of every value of a document: `status peers[].address string`.
pub(crate) fn of(path: &str, value: &Value, lines: &mut impl Extend<String>) {
    let word = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(all) => {
            all.iter().for_each(|value| of(&format!("{path}[]"), value, lines));
            "array"
        }
        Value::Object(all) => {
            all.iter().for_each(|(key, value)| of(&format!("{path}.{}", plain(key)), value, lines));
            "object"
        }
    };
    // What a document says it is, is part of its shape.
    let word = value.as_str().filter(|_| path.ends_with(".schema")).unwrap_or(word);
    lines.extend([format!("{path} {word}")]);
}

/// Replaces what differs from run to run: words that hold a digit, and those of more than 40 characters.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut word = String::new();
    let end = |word: &mut String, plain: &mut String| {
        let differs = word.chars().any(|c| c.is_ascii_digit()) || word.len() > 40;
        plain.push_str(if differs { "N" } else { word });
        word.clear();
    };
    for c in text.chars() {
        if c.is_alphanumeric() || "-_.:/µ+".contains(c) {
            word.push(c);
        } else {
            end(&mut word, &mut plain);
            plain.push(c);
        }
    }
    end(&mut word, &mut plain);
    plain
}
