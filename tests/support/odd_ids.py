"""Channel ids that a PBX may choose: by its `systemname`, or by the program that asks for the channel."""

ODD_IDS = (
    'Berlin, Haus "2"-1790000000.1',
    "a\\b-1790000000.1",
    "(Haus [2-1790000000.1",
    "/../Haus?2#3%2F&4=5+6-1790000000.1",
    "K\u00f6ln \u65e5\u672c-1790000000.1;2",
    "no-break\u00a0space\tand tab-1790000000.1",
)
