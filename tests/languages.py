"""A few true sentences on one bird in many languages, and a question to each."""
# ruff: noqa: E501

from __future__ import annotations

ABOUT_TERNS = {
    "en": "The arctic tern sees two summers a year, because it migrates from one pole to the other and back again. It "
    "weighs no more than a hundred grams, and in its long life it flies as far as to the moon three times. Its nests "
    "lie on bare ground near the shore.",
    "de": "Die Küstenseeschwalbe erlebt zwei Sommer im Jahr, denn sie zieht von einem Pol zum anderen und wieder zurück. "
    "Sie wiegt nicht mehr als hundert Gramm und fliegt in ihrem langen Leben dreimal so weit wie bis zum Mond. Ihre "
    "Nester liegen auf dem nackten Boden in der Nähe der Küste.",
    "fr": "La sterne arctique connaît deux étés par an, parce qu'elle migre d'un pôle à l'autre et revient ensuite. Elle "
    "ne pèse pas plus de cent grammes, et pendant sa longue vie elle vole trois fois aussi loin que jusqu'à la lune. Ses "
    "nids se trouvent sur le sol nu près du rivage.",
    "es": "El charrán ártico vive dos veranos al año, porque migra de un polo al otro y después regresa. No pesa más de "
    "cien gramos, y durante su larga vida vuela tres veces la distancia que hay hasta la luna. Sus nidos están sobre el "
    "suelo desnudo cerca de la orilla.",
    "it": "La sterna artica vive due estati ogni anno, perché migra da un polo all'altro e poi ritorna. Non pesa più di "
    "cento grammi, e durante la sua lunga vita vola tre volte la distanza che ci separa dalla luna. I suoi nidi si "
    "trovano sulla terra nuda vicino alla riva.",
    "nl": "De noordse stern beleeft twee zomers per jaar, want hij trekt van de ene pool naar de andere en weer terug. "
    "Hij weegt niet meer dan honderd gram en vliegt in zijn lange leven drie keer zo ver als naar de maan. Zijn nesten "
    "liggen op de kale grond dicht bij de kust.",
    "sv": "Silvertärnan upplever två somrar varje år, eftersom den flyttar från den ena polen till den andra och sedan "
    "tillbaka. Den väger inte mer än hundra gram och flyger under sitt långa liv tre gånger så långt som till månen. "
    "Dess bon ligger på den nakna marken nära stranden.",
    "pl": "Rybitwa popielata przeżywa dwa lata w ciągu roku, ponieważ wędruje od jednego bieguna do drugiego i z "
    "powrotem. Nie waży więcej niż sto gramów, a w ciągu swojego długiego życia przelatuje trzy razy tyle, co na "
    "księżyc. Jej gniazda leżą na gołej ziemi blisko brzegu.",
    "tr": "Kuzey sumrusu yılda iki yaz yaşar, çünkü bir kutuptan öbürüne göç eder ve sonra geri döner. Ağırlığı yüz "
    "gramdan fazla değildir ve uzun ömrü boyunca aya kadar olan yolun üç katını uçar. Yuvaları kıyıya yakın çıplak "
    "toprağın üzerindedir.",
    "ru": "Полярная крачка видит два лета в году, потому что она летит от одного полюса к другому и возвращается назад. "
    "Она весит не больше ста граммов, а за свою долгую жизнь пролетает расстояние в три раза больше, чем до луны. Её "
    "гнёзда лежат на голой земле недалеко от берега.",
    "el": "Το αρκτικό γλαρόνι ζει δύο καλοκαίρια τον χρόνο, γιατί ταξιδεύει από τον έναν πόλο στον άλλον και επιστρέφει "
    "πάλι πίσω. Δεν ζυγίζει περισσότερο από εκατό γραμμάρια, και στη μακρά ζωή του πετάει τρεις φορές την απόσταση μέχρι "
    "το φεγγάρι. Οι φωλιές του βρίσκονται στο γυμνό έδαφος κοντά στην ακτή.",
    "ar": "يعيش الخرشنة القطبية صيفين في كل عام، لأنه يهاجر من قطب إلى آخر ثم يعود مرة أخرى. لا يزيد وزنه على مئة غرام، "
    "ويطير في حياته الطويلة مسافة تساوي ثلاث مرات المسافة إلى القمر. وتقع أعشاشه على الأرض العارية بالقرب من الشاطئ، حيث "
    "يحرسها الأبوان من الثعالب والطيور الكبيرة.",
    "hi": "आर्कटिक कुररी साल में दो गर्मियाँ देखती है, क्योंकि वह एक ध्रुव से दूसरे ध्रुव तक जाती है और फिर वापस लौट आती है। उसका वज़न सौ ग्राम से "
    "अधिक नहीं होता, और अपने लंबे जीवन में वह चाँद की दूरी से तीन गुना अधिक उड़ती है। उसके घोंसले समुद्र के किनारे के पास खाली ज़मीन पर होते हैं।",
    "ja": "キョクアジサシは一年に二度の夏を過ごします。北極から南極まで渡り、また戻ってくるからです。体重は百グラムほどしかありませんが、"
    "長い一生のあいだに月までの距離の三倍を飛びます。巣は海岸に近い裸の地面の上にあります。親鳥は近づくキツネや大きな鳥に向かって"
    "飛びかかり、卵とひなを守ります。秋になると群れを作り、海の上を何週間も休まずに南へ向かいます。",
    "zh": "北极燕鸥每年度过两个夏天，因为它从一极飞到另一极，然后再飞回来。它的体重不超过一百克，但在漫长的一生中，它飞行的距离相当于到"
    "月球距离的三倍。它的巢筑在靠近海岸的光秃地面上。有狐狸或者大鸟靠近的时候，父母会一起冲下来保护鸟蛋和雏鸟。到了秋天，它们成群"
    "结队，在海面上连续飞行几个星期，一直飞到南方。第二年春天它们又回到同一个地方，寻找去年的伴侣，重新开始筑巢。",
    "ko": "북극제비갈매기는 해마다 두 번의 여름을 보냅니다. 한쪽 극에서 다른 쪽 극까지 날아갔다가 다시 돌아오기 때문입니다. 몸무게는 백 "
    "그램을 넘지 않지만, 긴 일생 동안 달까지 거리의 세 배를 날아갑니다. 둥지는 바닷가에 가까운 맨땅 위에 있습니다. 여우나 큰 새가 "
    "다가오면 부모가 함께 달려들어 알과 새끼를 지킵니다. 가을이 되면 무리를 지어 바다 위를 몇 주 동안 쉬지 않고 남쪽으로 날아갑니다.",
    "th": "นกนางนวลแกลบขั้วโลกเหนือได้เห็นฤดูร้อนสองครั้งในหนึ่งปี เพราะมันบินอพยพจากขั้วโลกหนึ่งไปยังอีกขั้วโลกหนึ่งแล้วบินกลับมา มันหนักไม่เกินหนึ่งร้อยกรัม "
    "แต่ตลอดชีวิตอันยาวนานมันบินเป็นระยะทางสามเท่าของระยะทางไปดวงจันทร์ รังของมันอยู่บนพื้นดินโล่งใกล้ชายฝั่งทะเล และพ่อแม่นกจะช่วยกันไล่สุนัขจิ้งจอก",
}
"""The same three sentences, and some more where a script is terse."""

QUESTIONS = {  # in other forms of the words than the texts have, where the language has a stemmer
    "en": "migrating to the poles",
    "de": "Nest am Pole",
    "fr": "migrer vers les pôles",
    "es": "el nido del charrán",
    "it": "il nido della sterna",
    "nl": "het nest van de stern",
    "sv": "silvertärnans bo",
    "pl": "rybitwa popielata",
    "tr": "kutuptan göç",
    "ru": "полюс и гнездо",
    "el": "το φεγγάρι και οι φωλιές",
    "ar": "القمر والشاطئ",
    "hi": "चाँद की दूरी",
    "ja": "月までの距離",
    "zh": "月球的距离",
    "ko": "달까지의 거리",
    "th": "ดวงจันทร์",
}
