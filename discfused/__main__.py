from discfused.cli import main

raise SystemExit(main())
