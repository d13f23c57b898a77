//! Numbers that may be percentages.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A percentage.
pub(crate) fn percent(number: u8) -> IntOrString {
    IntOrString::String(format!("{number}%"))
}

/// The number, or the percentage of `total` rounded up or down; what is neither
/// counts as zero. Never negative.
pub(crate) fn scaled(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let Some(percent) = text
                .strip_suffix('%')
                .and_then(|number| number.parse::<i64>().ok())
            else {
                return 0;
            };
            let hundredths = percent.saturating_mul(i64::from(total)).max(0);
            let whole = if up {
                hundredths.saturating_add(99) / 100
            } else {
                hundredths / 100
            };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(IntOrString::Int(3), true, 3)]
    #[case(IntOrString::Int(-3), true, 0)]
    #[case(percent(25), true, 3)]
    #[case(percent(25), false, 2)]
    #[case(percent(0), true, 0)]
    #[case(IntOrString::String("many".into()), true, 0)]
    fn percentages_round_as_told(
        #[case] value: IntOrString,
        #[case] up: bool,
        #[case] expected: i32,
    ) {
        assert_eq!(scaled(&value, 10, up), expected);
    }
}
